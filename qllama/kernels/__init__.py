"""Compiled kernels: SIMD code generation, linear algebra on packed weights, attention.

Kernels see addresses, counts and strides; they know nothing of files, models or
tokens. `docs/kernels.md` is the tour.
"""
