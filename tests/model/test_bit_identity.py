"""A token's logits are the same bits in any ragged batch, with either cache, at any depth.

Hypothesis draws a history: slots that start at different depths, then steps that mix
prefill chunks of some slots with decoded tokens of others, in any order, and slots that
go back to an earlier position and take another text from there. Whatever the history,
each token must have the logits that its text has when it is evaluated token by token on
one thread, in one slot of an engine of its own.
"""

from __future__ import annotations

from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from tiny_model import config, random_tensors, write_model

from qllama.format import QlmFile
from qllama.kernels.kv_layout import CHUNK, KV_TYPES
from qllama.model.engine import Engine

N_SLOTS = 5
N_CTX = 2 * CHUNK + 60
#: Where slots may start: shallow, around the edges of panels and chunks, deep.
DEPTHS = (0, 1, 15, 31, CHUNK - 2, CHUNK, CHUNK + 33, 2 * CHUNK - 1, 2 * CHUNK + 20)
MODELS = {
    "gqa 3, head_dim 80": (
        {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 80},
        {"embed": "q8_0", "lm_head": "q8_0", "": "q4"},
    ),
    "window, norms of heads": (
        {"sliding_window": 40, "qk_norm": True, "head_dim": 24},
        {"self_attn": "q6", "": "q4_0"},
    ),
    "gqa 7, floats": ({"num_attention_heads": 7, "num_key_value_heads": 1}, "f16"),
}
draws = settings(
    deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


class Model:
    """A model, an engine for every way to run it, and the bits that all of them must give."""

    def __init__(self, path: Path, kv_type: str, n_ctx: int = N_CTX) -> None:
        self.file = QlmFile.open(path)
        self._how = {"kv_type": kv_type, "n_ctx": n_ctx}
        self._engines: dict[tuple[int, int], Engine] = {}
        self._alone = Engine(self.file, n_threads=1, n_batch=1, **self._how)
        self._held: list[int] = []
        self._known: dict[tuple[int, ...], np.ndarray] = {}

    def engine(self, n_threads, n_batch):
        if (n_threads, n_batch) not in self._engines:
            self._engines[n_threads, n_batch] = Engine(
                self.file, n_threads=n_threads, n_batch=n_batch, n_slots=N_SLOTS, **self._how
            )
        return self._engines[n_threads, n_batch]

    def text(self, seed, n=N_CTX):
        return np.random.default_rng(seed).integers(0, self.file.config.vocab_size, n).tolist()

    def alone(self, text, n):
        """Logits of the text's last n tokens, evaluated one by one."""
        prefixes = [tuple(text[:end]) for end in range(len(text) - n + 1, len(text) + 1)]
        if not all(prefix in self._known for prefix in prefixes):
            shared = 0
            while self._held[shared : shared + 1] == text[shared : shared + 1] != []:
                shared += 1
            for i in range(min(shared, len(text) - n), len(text)):
                self._known[tuple(text[: i + 1])] = self._alone.evaluate([text[i]], position=i)[0]
            self._held = list(text)
        return np.stack([self._known[prefix] for prefix in prefixes])

    def close(self):
        for engine in (self._alone, *self._engines.values()):
            engine.close()
        self.file.close()


@pytest.fixture(scope="module", params=[(m, k) for k in KV_TYPES for m in MODELS], ids=str)
def model(request, tmp_path_factory):
    name, kv_type = request.param
    changes, types = MODELS[name]
    made = config(**changes)
    path = tmp_path_factory.mktemp("model") / "tiny.qlm"
    model = Model(write_model(path, made, random_tensors(made), types), kv_type)
    yield model
    model.close()


def step(engine, texts, places, counts):
    """Evaluate `counts` = (slot, n) further tokens at once; yields (slot, their logits)."""
    tokens, positions, slots = [], [], []
    for slot, n in counts:
        start = places[slot]
        tokens += texts[slot][start : start + n]
        positions += range(start, start + n)
        slots += [slot] * n
    arrays = (np.array(a, np.int32) for a in (tokens, positions, slots))
    logits = engine.forward(*arrays, range(len(tokens)))
    for slot, n in counts:
        places[slot] += n
        yield slot, logits[:n]
        logits = logits[n:]


@draws
@given(data=st.data())
def test_forward_any_history_of_ragged_batches_gives_the_same_bits(model, data):
    n_batch = data.draw(st.sampled_from([3, 16, 64]), label="n_batch")
    engine = model.engine(data.draw(st.integers(1, 3), label="n_threads"), n_batch)
    slots = data.draw(st.permutations(range(N_SLOTS)), label="slots")
    slots = slots[: data.draw(st.integers(1, N_SLOTS), label="n_slots")]
    texts = {slot: model.text(data.draw(st.integers(0, 2))) for slot in slots}
    places = {slot: data.draw(st.sampled_from(DEPTHS), label="depth") for slot in slots}
    for slot, depth in places.items():
        if depth:
            engine.evaluate(texts[slot][:depth], position=0, slot=slot)
    for _ in range(data.draw(st.integers(1, 5), label="steps")):
        rewound = data.draw(st.none() | st.sampled_from(slots), label="rewound")
        if rewound is not None and places[rewound]:
            kept = data.draw(st.integers(0, places[rewound]), label="kept")
            other = model.text(data.draw(st.integers(3, 4)))
            texts[rewound] = texts[rewound][:kept] + other[kept:]
            places[rewound] = kept
        counts, room = [], n_batch
        for slot in data.draw(st.permutations(slots), label="order"):
            most = min(room, 20, N_CTX - places[slot])
            n = data.draw(st.integers(0, most) | st.just(min(1, most)), label="n")
            counts += [(slot, n)] if n else []
            room -= n
        if not counts:
            continue
        for slot, logits in step(engine, texts, places, counts):
            expected = model.alone(texts[slot][: places[slot]], len(logits))
            np.testing.assert_array_equal(logits, expected, f"slot {slot}, to {places[slot]}")


@pytest.mark.parametrize("n_threads", [1, 2, 3])
def test_forward_many_slots_of_all_depths_decode_together_to_the_same_bits(model, n_threads):
    engine = model.engine(n_threads, 64)
    depths = (2 * CHUNK + 20, 3, CHUNK - 1, CHUNK, 2 * CHUNK - 1)
    texts = {slot: model.text(seed) for slot, seed in enumerate((0, 1, 2, 0, 1))}
    places = dict(enumerate(depths))
    for slot, depth in places.items():
        engine.evaluate(texts[slot][:depth], position=0, slot=slot)
    for _ in range(3):
        for slot, logits in step(engine, texts, places, [(slot, 1) for slot in places]):
            np.testing.assert_array_equal(logits, model.alone(texts[slot][: places[slot]], 1))


@pytest.mark.parametrize("kv_type", KV_TYPES)
def test_forward_real_model_mixed_batches_give_the_same_bits(smollm2_q4, kv_type):
    model = Model(smollm2_q4, kv_type, n_ctx=320)
    texts = {slot: model.text(slot, 300) for slot in range(3)}
    places = {0: 5, 1: 200, 2: 250}
    engine = model.engine(2, 96)
    for slot, depth in places.items():
        engine.evaluate(texts[slot][:depth], position=0, slot=slot)
    # A prompt's chunk of one slot beside decoded tokens of the others.
    for counts in ([(1, 1), (0, 40), (2, 1)], [(2, 7), (1, 1), (0, 1)]):
        for slot, logits in step(engine, texts, places, counts):
            once = model.engine(1, 7).evaluate(texts[slot][: places[slot]], position=0)
            np.testing.assert_array_equal(logits[-1:], once)
    model.close()
