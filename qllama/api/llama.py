"""`Llama`: the Python face of qllama.

Owns what can be asked of a model. Fetching and converting models is `qllama.hub`'s business.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import numpy.typing as npt

from qllama.api.model import OpenModel
from qllama.api.state import capture, restore, state_shape
from qllama.format import state as state_file
from qllama.generation.generator import GenerationOptions
from qllama.generation.loop import Stream
from qllama.generation.results import Completion
from qllama.tokenizer.chat import ChatTemplate, check_messages

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Llama"]


class Llama(OpenModel):
    """A model, ready to answer.

    Calls may come from several threads: one lock lets one of them compute at a
    time. A stream holds it only while it makes a piece, so other calls may come in
    between; they change no answer. Tokens that a call shares with an earlier one, from
    the first token on, are not evaluated again as long as that one is held or in the
    memory of `cache_bytes`.

    Parameters
    ----------
    model_path : str or path
        A `.qlm` file, as `qllama convert` or `qllama pull` makes it.
    n_ctx : int
        Context window in tokens, prompt and answer together; 0 is the model's own.
    n_threads : int, optional
        Compute threads; by default one a physical core that this process may use.
    n_batch : int
        Prompt tokens evaluated together. Changes speed and memory, not results.
    kv_type : str
        What keys and values are held in: `f16`, or `q8`, which takes half the memory,
        reads it faster and rounds more (`docs/quantization.md`).
    chat_template : str or path, optional
        Jinja, or the path of a file of it, for `chat` instead of the model's own.
    cache_bytes : int
        Memory for conversations that others displaced, the most recently used ones: going
        on with one of them copies its keys and values instead of evaluating its tokens
        again. 0 keeps the last conversation only.
    use_mmap : bool
        Map the file: it is open at once, and processes share its memory. False reads it
        into memory of this process' own (`docs/memory.md`).
    verbose : bool
        Say on stderr what was loaded and how long it took.
    on_load : callable, optional
        Given bytes read and bytes in all, while the file is read.
    on_compile : callable, optional
        Given a stage, stages done and stages in all while kernels are compiled (once
        on a machine) or loaded. By default one line on stderr tells of compiling.

    Raises
    ------
    ModelNotFoundError
        When there is no such file.
    ContextLengthError
        When the model cannot have a window of `n_ctx` tokens.
    OutOfMemoryError
        When this machine has not the memory.
    QlmFormatError
        When the file is no valid `.qlm` file.
    UnsupportedModelError
        When the model needs something that qllama does not compute.
    TokenizerError, ValueError
        When `chat_template` is no template, a count is out of range or `kv_type` unknown.

    Examples
    --------
    >>> from qllama import Llama
    >>> llm = Llama("smollm2-135m-q4.qlm")  # doctest: +SKIP
    >>> llm.generate("The capital of France is", max_tokens=3, temperature=0)  # doctest: +SKIP
    ' Paris.\\n'
    >>> question = {"role": "user", "content": "Name a prime number."}
    >>> for piece in llm.chat([question], stream=True, temperature=0):  # doctest: +SKIP
    ...     print(piece, end="", flush=True)
    The prime number that I'm referring to is 2.
    """

    def logits(self, token_ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Return the model's output after every token of a text, teacher-forced.

        Parameters
        ----------
        token_ids : sequence of int, (n_tokens,)
            At least one.

        Returns
        -------
        float32, (n_tokens, vocab_size)
            Row i holds the logits of the token that follows token i.

        Raises
        ------
        ContextLengthError
            When the tokens do not fit the context window.
        ValueError
            When there are no tokens, or one is outside the vocabulary.
        """
        tokens = np.array(self._checked(token_ids), np.int32)
        with self._lock:
            return self._session.evaluate(tokens, all_logits=True).logits

    @overload
    def save_state(self) -> bytes: ...

    @overload
    def save_state(self, path: str | os.PathLike[str]) -> None: ...

    def save_state(self, path: str | os.PathLike[str] | None = None) -> bytes | None:
        """Save what the last call left evaluated, for `load_state` here or elsewhere.

        Parameters
        ----------
        path : str or path, optional
            File to write, whole or not at all (`docs/state.md`); without it the same
            bytes are returned.

        Raises
        ------
        StateError
            When the file cannot be written.
        """
        with self._lock:
            state = capture(self._engine, self._session, self._transcript)
        if path is None:
            return b"".join(state_file.encode(state, self._state_shape))
        state_file.store(Path(path), state, self._state_shape)
        return None

    def load_state(self, state: bytes | bytearray | memoryview | str | os.PathLike[str]) -> None:
        """Go on from where `save_state` was called: nothing that it saved is evaluated again.

        Answers are the same to the bit as without it. Any text may follow; a
        conversation is best gone on with by its messages, as ever.

        Parameters
        ----------
        state : bytes, str or path
            What `save_state` returned, or the path of its file.

        Raises
        ------
        StateError
            When it is damaged, no state, or one of another model, `kv_type` or a longer
            context.
        """
        if isinstance(state, str | os.PathLike):
            loaded = state_file.load(Path(state), self._state_shape)
        else:
            loaded = state_file.decode(state, self._state_shape)
        with self._lock:
            restore(loaded, self._engine, self._session, self._transcript)

    @property
    def _state_shape(self) -> state_file.StateShape:
        return state_shape(self._engine, self._file.fingerprint)

    @overload
    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        stream: Literal[False] = False,
        **options: Unpack[GenerationOptions],
    ) -> Completion: ...

    @overload
    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        stream: Literal[True],
        **options: Unpack[GenerationOptions],
    ) -> Stream: ...

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        stream: bool = False,
        **options: Unpack[GenerationOptions],
    ) -> Completion | Stream:
        """Continue a text.

        Parameters
        ----------
        prompt : str or sequence of int
            The text, in which `<|im_start|>` and its like are control tokens, with
            BOS added if the model wants it; or its token ids, taken as they are.
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
        ids = (
            self._tokenizer.encode(prompt, add_special=True, parse_special=True, add_eos=False)
            if isinstance(prompt, str)
            else self._checked(prompt)
        )
        answer = self._generator.start(ids, **options)
        return answer if stream else answer.completion()

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
        stream: Literal[False] = False,
        **options: Unpack[GenerationOptions],
    ) -> Completion: ...

    @overload
    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        stream: Literal[True],
        **options: Unpack[GenerationOptions],
    ) -> Stream: ...

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        stream: bool = False,
        **options: Unpack[GenerationOptions],
    ) -> Completion | Stream:
        """Answer the last message of a conversation, by the model's own chat template.

        Pass the whole conversation each time: only what is new in it is evaluated.
        An answer that comes back as it was given keeps the tokens it was made of.

        Parameters
        ----------
        messages : sequence of mapping
            Each with `role` (`system`, `user`, `assistant`) and `content`.
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
        prompt = self._render(messages)
        ids = self._transcript.encode(prompt)
        answer = self._generator.start(ids, **options)
        self._transcript.remember(prompt, ids, answer)
        return answer if stream else answer.completion()

    def tokenize_chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Return the token ids that `chat` would evaluate before it answers.

        Parameters
        ----------
        messages : sequence of mapping
            As in `chat`, which says what is raised.
        """
        return self._transcript.encode(self._render(messages))

    def _render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        check_messages(messages)
        if self._chat_template is None:
            self._chat_template = ChatTemplate.of(self._tokenizer)
        return self._chat_template.render(messages)

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
