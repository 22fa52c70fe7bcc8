"""How well a model repeats words and reads English under right and wrong rotary embeddings.

The figures behind the self-check's thresholds (`docs/conversion.md`): python
benchmarks/readings.py MODEL.qlm
"""

from __future__ import annotations

import math
import sys

from converter.check.forward import Reading, Text, hidden_states, losses
from converter.check.readings import Probe, alternatives
from converter.check.self_check import TEXT
from converter.check.weights import StoredWeights
from qllama.format import QlmFile
from qllama.progress import silent
from qllama.tokenizer import load_tokenizer


def main(path: str) -> None:
    with QlmFile.open(path) as file:
        weights, config = StoredWeights(file), file.config
        tokenizer = load_tokenizer(file.tokenizer, file.tokenizer_blob)
        probe = Probe.of(tokenizer, config)
        assert probe is not None
        tokens = tokenizer.encode(TEXT, add_special=True, parse_special=False, add_eos=False)
        print(f"a blind guess: {math.log(config.vocab_size):.1f} nats\n")
        print(f"| rows of q and k | rope_theta | near | {probe.far} away | English |")
        print("|---|---|---|---|---|")
        for reading in (Reading(config.rope_theta), *alternatives(config)):
            texts = [Text(tokens, range(len(tokens)), reading), *probe.texts(reading)]
            english, *repeated = hidden_states(
                weights,
                texts,
                config.num_hidden_layers,
                lambda done, total: silent("reading", done, total),
            )
            (found,) = probe.losses(weights, repeated)
            loss = losses(weights, english[:-1], tokens[1:]).mean()
            print(
                f"| {reading.rows} | {reading.rope_theta:g} | {found.near:.1f} | "
                f"{found.far:.1f} | {loss:.1f} |"
            )


if __name__ == "__main__":
    main(sys.argv[1])
