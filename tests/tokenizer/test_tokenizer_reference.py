"""Against Hugging Face transformers, where it is installed (with PyTorch, for GGUF)."""

from __future__ import annotations

import chat_templates
import gguf
import pytest
from tokenizer_texts import TEXTS

from converter.vocabularies.gguf_fields import tokenizer_from_gguf
from qllama.tokenizer import ChatTemplate, load_tokenizer

pytestmark = pytest.mark.reference


@pytest.fixture(scope="module")
def transformers():
    pytest.importorskip("torch")
    return pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def theirs(transformers, smollm2_gguf):
    """`AutoTokenizer` of the same file, with the step that it forgets.

    transformers reads `tokenizer.ggml.pre` of no GGUF file, and gives every `gpt2`
    vocabulary GPT-2's cut. SmolLM2's own `tokenizer.json` cuts digits off first.
    """
    from tokenizers import pre_tokenizers

    tokenizer = transformers.AutoTokenizer.from_pretrained(
        smollm2_gguf.parent, gguf_file=smollm2_gguf.name, local_files_only=True
    )
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    return tokenizer


@pytest.fixture(scope="module")
def ours(smollm2_gguf):
    reader = gguf.GGUFReader(smollm2_gguf)
    fields = {key: f.contents() for key, f in reader.fields.items() if key.startswith("tokenizer")}
    return load_tokenizer(*tokenizer_from_gguf(fields))


@pytest.mark.parametrize("text", TEXTS)
def test_smollm2_ids_equal_transformers(ours, theirs, text):
    for parse_special in (True, False):
        expected = theirs.encode(
            text, add_special_tokens=False, split_special_tokens=not parse_special
        )
        found = ours.encode(text, add_special=False, parse_special=parse_special)
        assert found == expected
        assert ours.decode(found) == theirs.decode(expected)


MESSAGES = [
    [{"role": "user", "content": "  Hello <b>\n"}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": " “b” "},
        {"role": "user", "content": "c"},
    ],
]


@pytest.mark.parametrize("name", ["SMOLLM2", "CHATML", "LLAMA_2", "LLAMA_3", "MISTRAL"])
@pytest.mark.parametrize("messages", MESSAGES)
@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_chat_prompt_equals_transformers(transformers, name, messages, add_generation_prompt):
    from transformers.utils.chat_template_utils import render_jinja_template

    if name == "MISTRAL":
        messages = [message for message in messages if message["role"] != "system"]
    source = getattr(chat_templates, name)
    (expected,), _ = render_jinja_template(
        [messages],
        chat_template=source,
        add_generation_prompt=add_generation_prompt,
        bos_token="<s>",
        eos_token="</s>",
    )
    assert ChatTemplate(source, "<s>", "</s>").render(messages, add_generation_prompt) == expected
