"""How much is computed at once, as a function of what it took before."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_model import config, random_tensors, write_model

from qllama.format import QlmFile
from qllama.model.engine import Engine
from qllama.model.pace import Pace

MOST = 512
# Llama 3 8B's layer: 218 million weights.
BIG = config(
    hidden_size=4096,
    intermediate_size=14336,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
)


def test_pace_of_a_small_model_takes_all_at_once():
    pace = Pace(config(), n_threads=1)
    assert pace.n_tokens(MOST) == MOST
    assert pace.n_layers(MOST) > 100


def test_pace_before_any_measurement_is_that_of_a_slow_machine():
    pace = Pace(BIG, n_threads=1)
    assert pace.n_tokens(MOST) == 32
    assert (pace.n_layers(1), pace.n_layers(32)) == (2, 1)


@pytest.mark.parametrize(
    ("seconds_per_layer", "n_tokens"),
    [(0.01, MOST), (0.125, MOST), (0.25, 256), (0.7, 64), (60.0, 32)],
)
def test_pace_chunk_of_a_prompt_takes_an_eighth_of_a_second_a_layer(seconds_per_layer, n_tokens):
    pace = Pace(BIG, n_threads=1)
    pace.measured(MOST, 32, 32 * seconds_per_layer)
    assert pace.n_tokens(MOST) == n_tokens
    assert pace.n_tokens(20) == 20


def test_pace_layers_together_take_an_eighth_of_a_second():
    pace = Pace(BIG, n_threads=1)
    pace.measured(1, 32, 0.32)
    assert pace.n_layers(1) == 12
    pace.measured(64, 32, 3.2)
    assert pace.n_layers(64) == 1
    assert pace.n_layers(1) == 12


def test_pace_few_tokens_tell_nothing():
    pace = Pace(BIG, n_threads=1)
    before = pace.n_tokens(MOST), pace.n_layers(1)
    pace.measured(9, 32, 1e-6)
    assert (pace.n_tokens(MOST), pace.n_layers(1)) == before


class SlowPace:
    """As if a layer took long."""

    def n_tokens(self, most):
        return 3

    def n_layers(self, n_tokens):
        return 1

    def measured(self, n_tokens, n_layers, seconds):
        pass


def test_engine_that_is_checked_keeps_pace_and_computes_the_same(tmp_path, monkeypatch):
    text = [7, 3, 9, 1, 4, 40, 2]
    told = []
    path = write_model(tmp_path / "tiny.qlm", config(), random_tensors(config()))
    with QlmFile.open(path) as file:
        engine = Engine(file, n_ctx=64)
        expected = engine.evaluate(text, position=0, all_logits=True)
        monkeypatch.setattr(engine, "_pace", SlowPace())
        logits = engine.evaluate(
            text,
            position=0,
            all_logits=True,
            on_progress=lambda *seen: told.append(seen),
            check=lambda: told.append("check"),
        )
        engine.close()
    np.testing.assert_array_equal(logits, expected)
    # Two layers in each of three chunks.
    assert told == ["check", "check", (3, 7), "check", "check", (6, 7), "check", "check"]
