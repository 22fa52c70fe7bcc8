"""`Llama`: the Python face of qllama.

Owns how a model file, its tokenizer, an engine and a session come together, and
the one lock around them. Fetching and converting models is `qllama.hub`'s business.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import numpy.typing as npt

from qllama.config import DEFAULT_N_BATCH, ModelConfig
from qllama.errors import TokenizerError
from qllama.format.reader import QlmFile
from qllama.generation.generator import GenerationOptions, Generator
from qllama.generation.loop import Stream
from qllama.generation.results import Completion
from qllama.generation.session import Session
from qllama.generation.transcript import Transcript
from qllama.model.engine import Engine
from qllama.notice import CompileNotice, notice
from qllama.tokenizer import load_tokenizer
from qllama.tokenizer.chat import ChatTemplate, check_messages

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Llama"]


class Llama:
    """A model, ready to answer.

    Calls may come from several threads: one lock lets one of them compute at a
    time. A stream holds it only while it makes a piece, so other calls may come in
    between; they change no answer, but two streams that take turns evaluate their
    texts anew each time. Tokens that one call shares with the previous one, from
    the first token on, are not evaluated again.

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

    def __init__(
        self,
        model_path: str | os.PathLike[str],
        *,
        n_ctx: int = 0,
        n_threads: int | None = None,
        n_batch: int = DEFAULT_N_BATCH,
        kv_type: str = "f16",
        chat_template: str | os.PathLike[str] | None = None,
        use_mmap: bool = True,
        verbose: bool = False,
        on_load: Callable[[int, int], None] | None = None,
        on_compile: Callable[[str, int, int], None] | None = None,
    ) -> None:
        started = time.perf_counter()
        self._lock = threading.Lock()
        self._file = QlmFile.open(model_path, use_mmap=use_mmap, on_progress=on_load)
        try:
            self._tokenizer = load_tokenizer(self._file.tokenizer, self._file.tokenizer_blob)
            self._chat_template: ChatTemplate | None = None
            if chat_template is not None:
                self.chat_template = chat_template
            self._engine = Engine(
                self._file,
                n_ctx=n_ctx,
                n_threads=n_threads,
                n_batch=n_batch,
                kv_type=kv_type,
                on_compile=on_compile or CompileNotice(),
            )
        except BaseException:
            self._file.close()
            raise
        seconds = time.perf_counter() - started
        self._session = Session(self._engine)
        self._generator = Generator(
            self._session, self._lock, self._tokenizer, load_seconds=seconds
        )
        self._transcript = Transcript(self._tokenizer)
        if verbose:
            notice(
                f"loaded {os.fspath(model_path)} in {seconds:.2f} s: "
                f"{self.n_ctx} tokens of context, {self._engine.n_threads} threads"
            )

    def __enter__(self) -> Llama:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the model; streams that are still open then raise ValueError."""
        with self._lock:
            if not self._session.closed:
                self._session.close()
                self._engine.close()
                self._file.close()

    @property
    def config(self) -> ModelConfig:
        """Hyperparameters of the model."""
        return self._engine.config

    @property
    def provenance(self) -> dict[str, Any]:
        """What the model was converted from, as its file says."""
        return self._file.provenance

    @property
    def chat_template(self) -> str | None:
        """Jinja that `chat` renders, None where the model has none; or set it, or its file."""
        own = self._tokenizer.config.chat_template
        return own if self._chat_template is None else self._chat_template.source

    @chat_template.setter
    def chat_template(self, template: str | os.PathLike[str]) -> None:
        self._chat_template = ChatTemplate.of(self._tokenizer, template)

    @property
    def n_ctx(self) -> int:
        """Tokens that fit the context window, prompt and answer together."""
        return self._session.n_ctx

    def tokenize(self, text: str | bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        """Return the token ids of `text`.

        Parameters
        ----------
        text : str or bytes
            Bytes are UTF-8.
        add_bos : bool
            Add the special tokens that the model wants around a text, BOS in most
            cases; none is added twice, and many models want none.
        special : bool
            Read `<|im_end|>` and its like in `text` as control tokens instead of
            plain text.

        Raises
        ------
        TokenizerError
            When the text cannot be expressed in UTF-8, or the bytes are none.
        """
        if isinstance(text, bytes):
            try:
                text = text.decode()
            except UnicodeDecodeError as error:
                raise TokenizerError(
                    f"text: expected UTF-8, found byte 0x{text[error.start]:02x} "
                    f"at offset {error.start}"
                ) from None
        return self._tokenizer.encode(text, add_special=add_bos, parse_special=special)

    def detokenize(self, ids: Iterable[int], special: bool = False) -> str:
        """Return the text of `ids`; undoes `tokenize`.

        Parameters
        ----------
        ids : iterable of int
            Token ids.
        special : bool
            Write control tokens as they are spelled instead of leaving them out.

        Raises
        ------
        TokenizerError
            When an id is not in the vocabulary.
        """
        return self._tokenizer.decode(ids, skip_special=not special)

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
        temperature, top_k, top_p, min_p : float
            Which tokens may come and how boldly to choose; see `SamplingParams`,
            also for the defaults. `temperature=0` always takes the likeliest.
        repeat_penalty, repeat_last_n, presence_penalty, frequency_penalty : float
            How to keep from repetition; see `SamplingParams`.
        logit_bias : mapping of int to float
            Added to single tokens' logits; -inf forbids a token.
        seed : int, optional
            Of the random draws: the same seed gives the same answer. None and -1
            choose a new one, which the result tells.
        stop : str or sequence of str
            Texts that end the answer, themselves left out.
        stop_token_ids : iterable of int
            Tokens that end the answer, beside the model's own end tokens.
        on_progress : callable
            Given prompt tokens done and to do after each `n_batch` of them. It must
            not call this model.

        Returns
        -------
        Completion or Stream
            The answer, a `str`; or with `stream=True` an iterator of `Piece`, also
            `str`, which joined are the same answer for the same seed.

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
        check_messages(messages)
        if self._chat_template is None:
            self._chat_template = ChatTemplate.of(self._tokenizer)
        prompt = self._chat_template.render(messages)
        ids = self._transcript.encode(prompt)
        answer = self._generator.start(ids, **options)
        self._transcript.remember(prompt, ids, answer)
        return answer if stream else answer.completion()

    def _checked(self, token_ids: Iterable[int]) -> list[int]:
        ids = [int(token) for token in token_ids]
        for token in ids:
            if not 0 <= token < self.config.vocab_size:
                raise ValueError(
                    f"expected token ids in 0..{self.config.vocab_size - 1}, found {token}"
                )
        return ids
