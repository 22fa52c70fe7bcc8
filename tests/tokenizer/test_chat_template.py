from __future__ import annotations

import datetime

import pytest
from chat_templates import CHATML, LLAMA_2, LLAMA_3, MISTRAL, SMOLLM2
from tiny_vocab import bpe_fields, token_id

from converter.vocabularies.gguf_fields import tokenizer_from_gguf
from qllama.errors import TokenizerError
from qllama.tokenizer import ChatTemplate, load_tokenizer
from qllama.tokenizer.chat import PLAIN

SYSTEM = {"role": "system", "content": " Be brief. "}
ASK = {"role": "user", "content": "Hi <b> & “you”"}
ANSWER = {"role": "assistant", "content": "Hello"}
MORE = {"role": "user", "content": "More"}


def render(source, messages, add_generation_prompt=True, **extra):
    return ChatTemplate(source, "<s>", "</s>").render(messages, add_generation_prompt, **extra)


def test_render_smollm2_adds_its_own_system_turn():
    assert render(SMOLLM2, [ASK]) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging "
        "Face<|im_end|>\n<|im_start|>user\nHi <b> & “you”<|im_end|>\n<|im_start|>assistant\n"
    )


def test_render_chatml_turns_and_generation_prompt():
    turns = "<|im_start|>user\nHi <b> & “you”<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
    assert render(CHATML, [ASK, ANSWER], False) == turns
    assert render(CHATML, [ASK, ANSWER], True) == turns + "<|im_start|>assistant\n"


def test_render_llama_2_puts_system_into_first_turn():
    assert render(LLAMA_2, [SYSTEM, ASK, ANSWER, MORE]) == (
        "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi <b> & “you” [/INST] Hello </s>"
        "<s>[INST] More [/INST]"
    )


def test_render_llama_3_system_date_and_tools():
    tools = [{"name": "f", "text": "é <x>"}]
    expected = (
        "<s><|start_header_id|>system<|end_header_id|>\n\nToday Date: 26 Jul 2024\n\n"
        '{\n    "name": "f",\n    "text": "é <x>"\n}\n\n'
        "Be brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi <b> & “you”<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert render(LLAMA_3, [SYSTEM, ASK], date_string="26 Jul 2024", tools=tools) == expected


def test_render_llama_3_takes_the_date_of_today():
    before = datetime.datetime.now()
    rendered = render(LLAMA_3, [ASK])
    days = {before, datetime.datetime.now()}
    assert any(f"Today Date: {day:%d %b %Y}\n" in rendered for day in days)


def test_render_mistral_with_generation_block():
    assert render(MISTRAL, [ASK, ANSWER, MORE]) == (
        "<s>[INST] Hi <b> & “you”[/INST] Hello</s>[INST] More[/INST]"
    )


def test_render_tools_and_documents_are_none_unless_given():
    source = "{{ tools is none }} {{ documents is none }} {{ more is defined }}"
    assert render(source, [ASK]) == "True True False"
    assert render(source, [ASK], tools=[], documents=[], more=0) == "False False True"


def test_render_refusal_of_the_template_names_its_line():
    with pytest.raises(TokenizerError) as info:
        render(LLAMA_2, [ASK, ASK])
    assert str(info.value) == "chat template, line 10: roles must alternate user/assistant"


def test_render_undefined_name_raises_and_names_its_line():
    with pytest.raises(TokenizerError, match=r"chat template, line 2: .*'nonsense' is undefined"):
        render("a\n{{ nonsense.more }}", [ASK])


@pytest.mark.parametrize(
    "source",
    [
        "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
        "{% for a in messages %}" * 30 + "{% endfor %}" * 30,
    ],
    ids=["parentheses", "loops"],
)
def test_template_that_is_nested_too_deeply_raises_in_one_line(source):
    with pytest.raises(TokenizerError, match=r"^chat template: [^\n]+$"):
        ChatTemplate(source)


def test_template_syntax_error_raises_and_names_its_line():
    with pytest.raises(TokenizerError, match="chat template, line 3: Encountered unknown tag"):
        ChatTemplate("a\nb\n{% bogus %}")


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{% for i in range(10**9) %}{% endfor %}",
        "{{ '%s'|attr('format')|attr('__globals__') }}{{ ''.__class__() }}",
        "{{ 1 // 0 }}",
        "{{ raise_exception('two\\nlines') }}",
        "{{ messages[0].content.format_map(messages[0]).__doc__.x }}",
    ],
)
def test_render_hostile_template_raises_and_changes_nothing(source):
    messages = [dict(ASK)]
    with pytest.raises(TokenizerError, match="chat template, line 1: ") as info:
        render(source, messages)
    assert messages == [ASK]
    assert "\n" not in str(info.value)


def test_render_value_that_json_lacks_raises_and_says_where():
    with pytest.raises(
        TokenizerError, match=r"messages\[0\]\.content: expected text, .*found bytes"
    ):
        render(CHATML, [{"role": "user", "content": b"raw"}])


def test_render_richer_types_reach_the_template_as_plain_ones():
    class Text(str):
        def danger(self):
            return "reached"

    assert (
        render("{{ messages[0].content.danger is defined }}", [{"content": Text("a")}]) == "False"
    )
    assert render("{{ messages[0].content }}", ({"content": Text("a")},)) == "a"


def test_of_tokenizer_without_template_raises():
    tokenizer = load_tokenizer(*tokenizer_from_gguf(bpe_fields()))
    with pytest.raises(TokenizerError, match=r"no chat template: give one .* use plain"):
        ChatTemplate.of(tokenizer)


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"a\n{% bogus %}", "mine.jinja, line 2: Encountered unknown tag"),
        (b"caf\xe9", "mine.jinja: expected a chat template, .* not UTF-8"),
        (None, "mine.jinja: expected a chat template, .* No such file"),
    ],
)
def test_of_file_that_is_no_template_raises_and_names_it(tmp_path, content, error):
    path = tmp_path / "mine.jinja"
    if content is not None:
        path.write_bytes(content)
    tokenizer = load_tokenizer(*tokenizer_from_gguf(bpe_fields()))
    with pytest.raises(TokenizerError, match=error):
        ChatTemplate.of(tokenizer, path)


def test_of_file_whose_template_fails_names_file_and_line(tmp_path):
    path = tmp_path / "mine.jinja"
    path.write_text("a\n\n{{ nonsense.more }}")
    template = ChatTemplate.of(load_tokenizer(*tokenizer_from_gguf(bpe_fields())), path)
    with pytest.raises(TokenizerError, match=r"mine.jinja, line 3: 'nonsense' is undefined"):
        template.render([ASK])


def test_render_plain_continues_what_was_said():
    once = {"role": "user", "content": "Once upon"}
    assert render(PLAIN, [once]) == "Once upon"
    system, answer = (
        {"role": "system", "content": "A tale."},
        {"role": "assistant", "content": " a"},
    )
    assert render(PLAIN, [system, once, answer, ASK]) == ("A tale.\nOnce upon a\nHi <b> & “you”")
    assert render(PLAIN, [{"role": "system", "content": ""}, once]) == "Once upon"


def test_of_tokenizer_spells_bos_and_eos_and_bos_is_encoded_once():
    fields = bpe_fields()
    bos, eos = token_id(fields, "<|bos|>"), token_id(fields, "<|im_end|>")
    fields |= {
        "tokenizer.ggml.bos_token_id": bos,
        "tokenizer.ggml.eos_token_id": eos,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.chat_template": "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}",
    }
    tokenizer = load_tokenizer(*tokenizer_from_gguf(fields))
    prompt = ChatTemplate.of(tokenizer).render([{"role": "user", "content": "hello"}])
    assert prompt == "<|bos|>hello<|im_end|>"
    ids = tokenizer.encode(prompt, add_special=True, parse_special=True)
    assert ids == [bos, token_id(fields, "hello"), eos]
