"""Open a `.qlm` file and print how many seconds that took, all imports done before.

    python open_model.py FILE

A file rather than `python -c`, as `run_qllama.py`.
"""

import sys
import time

import numpy  # noqa: F401  # opening imports nothing then

from qllama.format import QlmFile

start = time.perf_counter()
QlmFile.open(sys.argv[1])
print(time.perf_counter() - start)
