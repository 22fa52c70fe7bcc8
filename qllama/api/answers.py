"""Answers of an open model: continued texts and conversations, whole or in pieces.

Owns how a prompt or messages become tokens and what calls have in common.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any, Literal, overload

from qllama.api.model import OpenModel
from qllama.api.tools import Tools, plain_messages
from qllama.generation.beams import BeamSearch
from qllama.generation.constraint import Constraint, ConstraintOptions
from qllama.generation.generator import GenerationOptions
from qllama.generation.loop import Stream
from qllama.generation.results import Completion
from qllama.tokenizer.chat import ChatTemplate, check_messages

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from qllama.model.engine import Engine

__all__ = ["AnsweringModel"]

# Their keys and values are all in memory.
_MOST_ANSWERS = 256


class AnsweringModel(OpenModel):
    """What `Llama` answers with."""

    @overload
    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        n: None = None,
        stream: Literal[False] = False,
        **options: Unpack[GenerationOptions],
    ) -> Completion: ...

    @overload
    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        n: int,
        stream: Literal[False] = False,
        **options: Unpack[GenerationOptions],
    ) -> list[Completion]: ...

    @overload
    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        n: None = None,
        stream: Literal[True],
        **options: Unpack[GenerationOptions],
    ) -> Stream: ...

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        n: int | None = None,
        stream: bool = False,
        **options: Unpack[GenerationOptions],
    ) -> Completion | list[Completion] | Stream:
        """Continue a text.

        Parameters
        ----------
        prompt : str or sequence of int
            The text, in which `<|im_start|>` and its like are control tokens, with
            BOS added if the model wants it; or its token ids, taken as they are.
        n : int, optional
            Return a list of so many answers, of seeds `seed`, `seed + 1` and so on. They
            share the prompt and are decoded as one batch: each is the same to the bit as
            if it were asked for alone.
        stream : bool
            Return the answer piece by piece, while it is made.
        max_tokens : int, optional
            Most tokens to choose; None and -1 go on until the context is full, 0
            evaluates the prompt only, so that a later call can reuse it.
        temperature, top_k, top_p, min_p, typical_p, xtc_probability, xtc_threshold : float
            Which tokens may come and how boldly to choose; see `SamplingParams`,
            also for the defaults. `temperature=0` always takes the likeliest.
        repeat_penalty, repeat_last_n, presence_penalty, frequency_penalty : float
            How to keep from repetition; see `SamplingParams`, also for `dry_*`.
        mirostat, mirostat_tau, mirostat_eta : float
            Hold the answer's surprise at a level; see `SamplingParams`.
        logits_processors : sequence of callable
            Your own part of it: each is given the tokens so far, int32 (n_tokens,), and
            the logits, float32 (vocab_size,), and returns logits.
        logit_bias : mapping of int to float
            Added to single tokens' logits; -inf forbids a token.
        seed : int, optional
            Of the random draws: the same seed gives the same answer. None and -1
            choose a new one, which the result tells.
        stop : str or sequence of str
            Texts that end the answer, themselves left out.
        stop_token_ids : iterable of int
            Tokens that end the answer, beside the model's own end tokens.
        timeout : float, optional
            Seconds until the answer ends as it is, its `finish_reason` then `timeout`;
            waiting for calls of other threads counts.
        logprobs : int, optional
            Have the answer's `logprobs` tell how likely each token was, and which of up
            to 20 were the likeliest.
        response_format, json_schema, regex, choice, grammar
            What the answer must look like, one of them; see `Constraint.of`. Such an
            answer breaks off early only by its length, a stop string or its caller.
        draft_max : int
            Most tokens to guess and verify in one step, 15 at most; 0 is plain decoding. It
            changes no answer, only how fast those come that repeat their prompt, and stands
            aside where `n` is given.
        on_progress : callable
            Given prompt tokens done and to do after each chunk of at most `n_batch` of
            them. It must not call this model.

        Returns
        -------
        Completion or Stream
            The answer, a `str`; or with `stream=True` an iterator of `Piece`, also
            `str`, which joined are the same answer for the same seed. Its `cancel`
            and `close` end it, from any thread.

        Raises
        ------
        ContextLengthError
            When the prompt does not fit the context window; it is never cut.
        TypeError, ValueError
            When an option is unknown or out of range; names it.
        """
        ids = self._prompt_ids(prompt)
        if n is not None:
            if stream or not 1 <= n <= _MOST_ANSWERS:
                raise ValueError(
                    f"n: expected 1 to {_MOST_ANSWERS}, without stream, found {n}"
                    + " with stream=True" * stream
                )
            generator = self._generator

            def open_engine(n_ctx: int) -> closing[Engine]:
                return closing(self._engine_for(n_ctx=n_ctx, n_slots=n, adapter=generator.adapter))

            return generator.start_together(ids, n, open_engine, **options).completions()
        answer = self._generator.start(ids, **options)
        return answer if stream else answer.completion()

    def beam_search(
        self,
        prompt: str | Sequence[int],
        *,
        n_beams: int = 4,
        max_tokens: int = 64,
        length_penalty: float = 1.0,
        stop_token_ids: Iterable[int] = (),
        **form: Unpack[ConstraintOptions],
    ) -> list[Completion]:
        """Look for the likeliest answers instead of drawing one.

        All beams are evaluated as one batch. Chat models seldom gain by it; translation
        and extraction may.

        Parameters
        ----------
        prompt : str or sequence of int
            As in `generate`.
        n_beams : int
            Sequences that are followed, 1 to 256.
        max_tokens : int
            Longest answer.
        length_penalty : float
            Answers are compared by the logarithm of their probability divided by
            length ** length_penalty: 0 favours short ones.
        stop_token_ids : iterable of int
            Tokens that end an answer, beside the model's own end tokens.
        **form
            `json_schema`, `regex`, `choice` and their like, as in `generate`.

        Returns
        -------
        list of Completion
            The best `n_beams`, best first, with `logprobs`; their `seed` is 0.

        Raises
        ------
        ValueError
            When a number is out of range, the prompt leaves no room for an answer, or
            the form is malformed.
        """
        if not 1 <= n_beams <= _MOST_ANSWERS:
            raise ValueError(f"n_beams: expected 1 to {_MOST_ANSWERS}, found {n_beams}")
        ids = self._prompt_ids(prompt)
        most = min(max_tokens, self.n_ctx - len(ids))
        if most < 1:
            raise ValueError(
                f"max_tokens: expected at least 1, and room for it after the {len(ids)} tokens "
                f"of the prompt in the context of {self.n_ctx}, found {max_tokens}"
            )
        generator = self._generator
        return generator.beam_search(
            ids,
            BeamSearch(
                n_beams,
                most,
                frozenset({*self._tokenizer.config.eos_token_ids, *stop_token_ids}),
                length_penalty,
                self._tokenizer.vocab_size,
            ),
            lambda: closing(
                self._engine_for(n_ctx=len(ids) + most, n_slots=n_beams, adapter=generator.adapter)
            ),
            Constraint.of(**form),
        )

    def agenerate(
        self, prompt: str | Sequence[int], **options: Unpack[GenerationOptions]
    ) -> Stream:
        """Continue a text in a coroutine, without blocking its event loop.

        `await llm.agenerate(...)` is the answer; `async for piece in llm.agenerate(...)`
        gives it piece by piece. A task that is cancelled cancels its answer.

        Parameters
        ----------
        prompt, **options
            As in `generate`, which says what is raised.
        """
        return self.generate(prompt, stream=True, **options)

    @overload
    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: str | Mapping[str, Any] | None = None,
        stream: Literal[False] = False,
        **options: Unpack[GenerationOptions],
    ) -> Completion: ...

    @overload
    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: str | Mapping[str, Any] | None = None,
        stream: Literal[True],
        **options: Unpack[GenerationOptions],
    ) -> Stream: ...

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: str | Mapping[str, Any] | None = None,
        stream: bool = False,
        **options: Unpack[GenerationOptions],
    ) -> Completion | Stream:
        """Answer the last message of a conversation, by the model's own chat template.

        Pass the whole conversation each time: only what is new in it is evaluated.
        An answer that comes back as it was given keeps the tokens it was made of.

        Parameters
        ----------
        messages : sequence of mapping
            Each with `role` (`system`, `user`, `assistant`, `tool`) and `content`, or
            `tool_calls`.
        tools : sequence of mapping, optional
            What the model may call, as the OpenAI API has it; see `Tools`. The answer's
            `tool_calls` tell what it calls, its text has them as the model wrote them.
        tool_choice : str or mapping, optional
            `auto`, `none`, `required` or the one to call.
        stream : bool
            Return the answer piece by piece, while it is made.
        **options
            As in `generate`.

        Returns
        -------
        Completion or Stream
            The answer's text, as in `generate`.

        Raises
        ------
        TokenizerError
            When the model has no chat template (use `generate` with a prompt in the
            model's own form), or the template refuses the messages.
        ContextLengthError
            When the conversation does not fit the context window; it is never cut.
        TypeError, ValueError
            When an option is unknown or out of range, or a message incomplete.
        """
        offered = self._offered(tools, tool_choice)
        answer = self._start_chat(messages, offered, options)
        if stream:
            return answer
        completion = answer.completion()
        return completion if offered is None else offered.read(completion)

    def tokenize_chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Return the token ids that `chat` would evaluate before it answers.

        Parameters
        ----------
        messages : sequence of mapping
            As in `chat`, which says what is raised.
        """
        return self._transcript.encode(self._render(messages))

    def achat(
        self, messages: Sequence[Mapping[str, Any]], **options: Unpack[GenerationOptions]
    ) -> Stream:
        """Answer a conversation in a coroutine; see `agenerate`.

        Parameters
        ----------
        messages, **options
            As in `chat`.
        """
        return self.chat(messages, stream=True, **options)

    def _offered(
        self, tools: Sequence[Mapping[str, Any]] | None, tool_choice: object
    ) -> Tools | None:
        if tools is None and tool_choice not in (None, "none", "auto"):
            raise ValueError(f"tool_choice: expected tools to choose from, found {tool_choice!r}")
        if tools is None or tool_choice == "none":
            return None
        return Tools(tools, tool_choice, self._template().source)

    def _start_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        offered: Tools | None,
        options: GenerationOptions,
    ) -> Stream:
        prompt = self._render(messages, offered)
        ids = self._transcript.encode(prompt)
        if offered is not None:
            options = offered.constrained(options, self._tokenizer)
        answer = self._generator.start(ids, **options)
        self._transcript.remember(prompt, ids, answer)
        return answer

    def _template(self) -> ChatTemplate:
        if self._chat_template is None:
            self._chat_template = ChatTemplate.of(self._tokenizer)
        return self._chat_template

    def _render(self, messages: Sequence[Mapping[str, Any]], offered: Tools | None = None) -> str:
        check_messages(messages)
        template = self._template()
        messages = plain_messages(messages, template.source)
        if offered is None:
            return template.render(messages)
        if offered.form_is_own:
            return template.render(messages, tools=offered.tools)
        return template.render(offered.told(messages))

    def _prompt_ids(self, prompt: str | Sequence[int]) -> list[int]:
        if isinstance(prompt, str):
            return self._tokenizer.encode(
                prompt, add_special=True, parse_special=True, add_eos=False
            )
        return self._checked(prompt)
