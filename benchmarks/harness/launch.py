"""Run a command and print, as JSON, how long its first output took and what memory it held.

    python -I -S launch.py COMMAND [ARGUMENT]...

A process of its own because the system counts a child's peak memory from that of the
parent that forked it: this one stays small, so it imports nothing but what it needs.
"""

import json
import os
import resource
import subprocess
import sys
import time

start = time.perf_counter()
try:
    child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
except OSError as error:
    sys.exit(f"{sys.argv[1]}: {error.strerror}")
assert child.stdout is not None
first = os.read(child.stdout.fileno(), 1)
seconds = time.perf_counter() - start
while first and os.read(child.stdout.fileno(), 65536):
    pass
code = child.wait()
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(
    json.dumps(
        {
            "exit_code": code,
            "seconds_to_output": seconds,
            "seconds": time.perf_counter() - start,
            # Linux counts in KiB, macOS in bytes.
            "peak_rss_bytes": peak if sys.platform == "darwin" else peak * 1024,
        }
    )
)
