"""Checkpoint directories against Hugging Face transformers, where it is installed."""

from __future__ import annotations

import pytest
from chat_templates import CHATML, LLAMA_2
from tiny_vocab import CONTROL
from tokenizer_repos import bpe_document, decoder, entry, prefixing_document, surrounding, write
from tokenizer_texts import TEXTS

from converter.tokenizer_files import tokenizer_from_path
from qllama.tokenizer import ChatTemplate, load_tokenizer

pytestmark = pytest.mark.reference

EXTRA = (("<|bos|>", CONTROL), ("<|im_start|>", CONTROL), ("<|im_end|>", CONTROL))
BPE = bpe_document(extra=EXTRA)
N_BPE = max(BPE["model"]["vocab"].values()) + 1
BOS, IM_END = N_BPE - 3, N_BPE - 1
NAMED = {"bos_token": "<|bos|>", "eos_token": "<|im_end|>", "pad_token": "<|bos|>"}
LATER = decoder(
    entry(N_BPE, "<|user|>", rstrip=True),
    entry(N_BPE + 1, " indeed ", special=False, lstrip=True),
    entry(BOS, "<|bos|>"),
    entry(IM_END, "<|im_end|>", lstrip=True),
)
MORE_TEXTS = ["<|user|> \n hello<|im_end|>", "so  indeed  it", "<s>[INST] hi [/INST] hi</s><s>[hi"]
REPOSITORIES = {
    "llama-3": {
        "tokenizer_json": {**BPE, "post_processor": surrounding(("<|bos|>", BOS))},
        "tokenizer_config_json": {**NAMED, "chat_template": CHATML},
    },
    "added-later": {
        "tokenizer_json": BPE,
        "tokenizer_config_json": {**NAMED, "added_tokens_decoder": LATER},
        "chat_template_jinja": CHATML.encode(),
    },
    "older-files": {
        "tokenizer_json": BPE,
        "special_tokens_map_json": {**NAMED, "additional_special_tokens": ["<|im_start|>"]},
        "added_tokens_json": {"<|user|>": N_BPE, "<plain>": N_BPE + 1},
        "tokenizer_config_json": {"chat_template": [{"name": "default", "template": CHATML}]},
    },
    **{
        f"prefix-{prepend}": {
            "tokenizer_json": prefixing_document(prepend),
            "tokenizer_config_json": {
                "bos_token": "<s>",
                "eos_token": "</s>",
                "chat_template": LLAMA_2,
            },
        }
        for prepend in ("always", "first", "never")
    },
}


@pytest.fixture(params=REPOSITORIES)
def repository(request, tmp_path):
    files = {
        name: dict(content) if isinstance(content, dict) else content
        for name, content in REPOSITORIES[request.param].items()
    }
    # The class that runs a tokenizer.json as it is; others build a pipeline of their own.
    files["tokenizer_config_json"]["tokenizer_class"] = "PreTrainedTokenizerFast"
    return write(tmp_path, **files)


@pytest.fixture
def theirs(repository):
    transformers = pytest.importorskip("transformers")
    return transformers.PreTrainedTokenizerFast.from_pretrained(repository)


@pytest.fixture
def ours(repository):
    return load_tokenizer(*tokenizer_from_path(repository, 1000, {}))


def test_ids_and_texts_equal_transformers(ours, theirs):
    for text in [*TEXTS, *MORE_TEXTS]:
        for parse_special in (True, False):
            for add_special in (True, False):
                expected = theirs.encode(
                    text,
                    add_special_tokens=add_special,
                    split_special_tokens=not parse_special,
                )
                found = ours.encode(text, add_special=add_special, parse_special=parse_special)
                if expected[:2] == [theirs.bos_token_id] * 2:
                    expected = expected[1:]  # ours never has two
                assert found == expected, text


def test_roles_equal_transformers(ours, theirs):
    config = ours.config
    assert config.bos_token_id == theirs.bos_token_id
    assert config.eos_token_ids[0] == theirs.eos_token_id
    assert config.pad_token_id == theirs.pad_token_id
    assert [ours.token_text(i) for i in range(ours.vocab_size)] == (
        theirs.convert_ids_to_tokens(range(len(theirs)))
    )
    # What this one calls special are the roles, and tokens named in a list.
    roles = set(theirs.all_special_ids)
    assert roles <= {i for i in range(ours.vocab_size) if ours.is_special(i)}


def test_chat_prompt_equals_transformers(ours, theirs):
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "12 🦙"},
    ]
    expected = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert ChatTemplate.of(ours).render(messages) == expected


@pytest.mark.parametrize("legacy", [None, True, False])
def test_sentencepiece_ids_equal_transformers_4(tmp_path, legacy):
    transformers = pytest.importorskip("transformers")
    if int(transformers.__version__.split(".")[0]) > 4:
        pytest.skip("transformers 5 no longer runs SentencePiece for Llama's tokenizer.model")
    from test_sentencepiece_vocabulary import TRAINED, N, trained

    settings = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "added_tokens_decoder": decoder(
            *(entry(i, text) for i, text in enumerate(("<unk>", "<s>", "</s>"))),
            entry(N, "<|end|>"),
            entry(N + 1, "<tool>", special=False),
        ),
        **({} if legacy is None else {"legacy": legacy}),
    }
    blob = trained(**TRAINED["llama"])
    write(tmp_path, tokenizer_model=blob, tokenizer_config_json=settings)
    theirs = transformers.LlamaTokenizer.from_pretrained(tmp_path)
    ours = load_tokenizer(*tokenizer_from_path(tmp_path, 1000, {}))
    for text in [*TEXTS, "<s>[INST] hi [/INST] a</s><s>[INST]b", "a<tool>x<|end|>\n", "</s> x"]:
        found = ours.encode(text, add_special=False, parse_special=True)
        assert found == theirs.encode(text, add_special_tokens=False), text
        if "<tool>" not in text:  # theirs reads no added token at all then, special or not
            found = ours.encode(text, add_special=False, parse_special=False)
            expected = theirs.encode(text, add_special_tokens=False, split_special_tokens=True)
            assert found == expected, text
