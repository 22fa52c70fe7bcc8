"""The `qllama` command of the installation that the scripts import, whatever the directory.

A file rather than `python -c`, which would prefer a checkout in the current directory.
"""

from qllama.cli import main

main()
