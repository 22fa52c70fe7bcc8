"""How well a model repeats words and reads English under right and wrong rotary embeddings.

The figures behind the self-check's thresholds, and behind what it leaves undecided
(`docs/conversion.md`): python benchmarks/readings.py MODEL.qlm TEXT, where TEXT is a file of
English.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from converter.check.forward import Reading, Text, hidden_states, losses
from converter.check.readings import Probe, row_spread
from converter.check.weights import StoredWeights, Weights
from qllama.config import ModelConfig, RopeScaling
from qllama.format import QlmFile
from qllama.model.rotary import RotaryTable
from qllama.tokenizer import load_tokenizer

F32 = npt.NDArray[np.float32]
WINDOWS, WINDOW = 5, 400
# Of three lists each; the first is the self-check's.
SETS = 4


@dataclass(frozen=True)
class Scaled(Reading):
    """A reading with a `rope_scaling` that need not be the config's."""

    scaling: RopeScaling | None = None

    def table(self, config: ModelConfig, divisors: F32 | None) -> RotaryTable:
        """See `Reading`."""
        read = replace(config, rope_theta=self.rope_theta, rope_scaling=self.scaling)
        return RotaryTable(read, divisors)


def readings(config: ModelConfig) -> dict[str, Reading]:
    """By what is changed; the first is the config's own."""
    theta, context = config.rope_theta, config.max_position_embeddings
    llama3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scalings = {
        "`linear` 2": RopeScaling("linear", factor=2.0),
        **{
            f"`llama3` {factor} of {original}": RopeScaling(
                "llama3", factor=factor, original_max_position_embeddings=original, **llama3
            )
            for factor, original in ((8, context), (32, context), (8, context // 4))
        },
        f"`yarn` 4 of {context}": RopeScaling(
            "yarn", factor=4, original_max_position_embeddings=context
        ),
    }
    return {
        "nothing": Reading(theta),
        "rows from interleaved": Reading(theta, "from interleaved"),
        "rows to interleaved": Reading(theta, "to interleaved"),
        **{f"base x {x:.2g}": Reading(theta * x) for x in (0.1, 1 / 3, 3, 5, 10)},
        **{name: Scaled(theta, scaling=scaling) for name, scaling in scalings.items()},
    }


def repetition(
    weights: Weights, reading: Reading, probes: Sequence[Probe], distances: Sequence[int]
) -> npt.NDArray[np.float64]:
    """Loss near by and at each distance, (distances + 1, probes)."""
    at = [replace(probe, far=far) for far in distances for probe in probes]
    states = hidden_states(
        weights,
        [text for probe in at for text in probe.texts(reading)],
        weights.config.num_hidden_layers,
        lambda done, total: None,
    )
    found = [probe.losses(weights, states[3 * i : 3 * i + 3])[0] for i, probe in enumerate(at)]
    far = np.array([one.far for one in found]).reshape(len(distances), -1)
    return np.vstack([[one.near for one in found[: len(probes)]], far])


def english(weights: Weights, reading: Reading, tokens: Sequence[int]) -> npt.NDArray[np.float64]:
    """Loss of each token of several windows."""
    windows = [tokens[i * WINDOW : (i + 1) * WINDOW] for i in range(WINDOWS)]
    texts = [Text(window, range(WINDOW), reading) for window in windows]
    n_layers = weights.config.num_hidden_layers
    states = hidden_states(weights, texts, n_layers, lambda done, total: None)
    targets = [token for window in windows for token in window[1:]]
    return losses(weights, np.concatenate([x[:-1] for x in states]), targets)


def main(path: str, text: str) -> None:
    with QlmFile.open(path) as file:
        weights, config = StoredWeights(file), file.config
        tokenizer = load_tokenizer(file.tokenizer, file.tokenizer_blob)
        content = Path(text).read_text(encoding="utf-8")
        tokens = tokenizer.encode(content, add_special=False, parse_special=False)
        assert len(tokens) >= WINDOWS * WINDOW, "the text is too short"
        lists = [p for seed in range(SETS) if (p := Probe.of(tokenizer, config, seed)) is not None]
        context = config.max_position_embeddings
        distances = (lists[0].far, context // 2, context * 3 // 2)
        started = time.perf_counter()
        repetition(weights, Reading(config.rope_theta), lists[:1], distances[:1])
        print(f"the self-check's lists: {time.perf_counter() - started:.1f} s")
        print(f"rows of q and k: {row_spread(weights):.1f} times the spread of random ones")
        print(f"a blind guess: {math.log(config.vocab_size):.1f} nats\n", flush=True)
        print("| changed | near |", *(f"{d} away |" for d in distances), "English |")
        print("|---" * (len(distances) + 3) + "|")
        own = None
        for name, reading in readings(config).items():
            found = repetition(weights, reading, lists, distances)
            loss = english(weights, reading, tokens)
            own = loss if own is None else own
            more = loss - own
            error = more.std() / math.sqrt(len(more))
            shown = f"{loss.mean():.3f}" if own is loss else f"{more.mean():+.3f} ± {error:.3f}"
            ranges = (f"{row.min():.1f} to {row.max():.1f}" for row in found)
            print(f"| {name} |", *(f"{r} |" for r in ranges), f"{shown} |", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
