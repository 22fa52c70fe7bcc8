"""Turns checkpoints into `.qlm` files; used by `qllama.hub` and `qllama convert` alone."""
