"""ik_llama.cpp behind today's llama-bench options, as a rival of side_by_side.py.

    python benchmarks/side_by_side.py --pair model.qlm=model.gguf -d 0,2048 \
        --rival "ik_llama.cpp=python benchmarks/rival_ik_llama.py IK_LLAMA_BENCH -rtr 1"

Its llama-bench is older than the option -d and generates after a prompt by -gp instead.
What this does not know is handed on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys


def main() -> None:
    """Run the program and print its answer with the depth told apart from the prompt."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("program", help="llama-bench of ik_llama.cpp")
    parser.add_argument("-p", required=True, help="lengths of prompts; 0 for none")
    parser.add_argument("-n", required=True, help="lengths of answers; 0 for none")
    parser.add_argument("-d", required=True, type=int, help="tokens held before")
    options, others = parser.parse_known_args()
    lengths = ["-p", options.p, "-n", options.n]
    if options.d:
        if options.p != "0":
            parser.error("-p cannot be measured at a depth")
        lengths = ["-p", "0", "-n", "0"]
        for n_gen in options.n.split(","):
            lengths += ["-gp", f"{options.d},{n_gen}"]
    done = subprocess.run(
        [options.program, *lengths, *others], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.returncode)
    rows = json.loads(done.stdout)
    for row in rows:
        row["n_depth"] = options.d
        if options.d:
            row["n_prompt"] = 0
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
