from __future__ import annotations

import io
import json

import numpy as np
import pytest
from click.testing import CliRunner

from qllama import Llama
from qllama.cli.group import cli


def run(*arguments, **how):
    return CliRunner().invoke(cli, ["embed", *map(str, arguments)], **how)


@pytest.fixture(scope="module")
def vectors(smollm2_q8):
    with Llama(smollm2_q8) as llm:
        return llm.embed(["A cat.", "A dog barks."])


def test_embed_prints_a_vector_a_text_as_json(smollm2_q8, vectors):
    done = run(smollm2_q8, "A cat.", "A dog barks.")
    assert done.exit_code == 0, done.output
    np.testing.assert_array_equal(np.float32(json.loads(done.stdout)), vectors)


def test_embed_lines_of_a_file_to_a_numpy_file(smollm2_q8, vectors, tmp_path):
    texts, out = tmp_path / "texts.txt", tmp_path / "v.npy"
    texts.write_text("A cat.\nA dog barks.\n")
    done = run(smollm2_q8, "-f", texts, "-o", out)
    assert (done.exit_code, done.stdout) == (0, "")
    np.testing.assert_array_equal(np.load(out), vectors)


def test_embed_stdin_to_stdout_with_another_pooling(smollm2_q8):
    options = ("-m", smollm2_q8, "--pooling", "last", "--no-normalize")
    done = run(*options, "A cat.", "-f", "-", "-o", "-", input="A dog barks.\n")
    found = np.load(io.BytesIO(done.stdout_bytes))
    with Llama(smollm2_q8) as llm:
        texts = ["A cat.", "A dog barks."]
        expected = llm.embed(texts, pooling="last", normalize=False)
    np.testing.assert_array_equal(found, expected)


def test_embed_without_a_text_is_wrong_usage():
    done = run("-m", "model.qlm")
    assert done.exit_code == 2
    assert "Give a TEXT" in done.stderr
