"""How well a model predicts a text, alone or beside another, for `qllama perplexity`.

Owns the method (llama.cpp's), the figures and how results are written down. Knows no
terminal.
"""
