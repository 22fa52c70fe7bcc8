"""Measures a model's speed, and the machine's limits beside it, for `qllama bench`.

Owns what is timed, how it is counted, and how results are written down. Knows no
terminal. Tokenizing and sampling are not part of what is measured.
"""
