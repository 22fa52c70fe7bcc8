"""An open model: its file, tokenizer, engine and session, and the one lock around them.

Owns how they come together and go. What is asked of a model is `Llama`'s business.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qllama.api.draft_model import DraftModel, guesser_of, n_ctx_beside
from qllama.api.llama_cpp_arguments import LlamaCppArguments, check_arguments
from qllama.api.lora import LoraArgument, load_adapter, lora_scales
from qllama.config import DEFAULT_N_BATCH, ModelConfig
from qllama.errors import TokenizerError
from qllama.format.reader import QlmFile
from qllama.generation.generator import Generator
from qllama.generation.session import Session
from qllama.generation.transcript import Transcript
from qllama.model.activations import activation_shapes
from qllama.model.adapter import Adapter
from qllama.model.engine import Engine
from qllama.notice import CompileNotice, notice
from qllama.tokenizer import load_tokenizer
from qllama.tokenizer.chat import ChatTemplate
from qllama.tracing.watch import Hooks, Watch

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

__all__ = ["OpenModel"]

DEFAULT_CACHE_BYTES = 2**28


class OpenModel:
    """What `Llama` is built on; see there for the parameters."""

    def __init__(
        self,
        model_path: str | os.PathLike[str],
        *,
        n_ctx: int = 0,
        n_threads: int | None = None,
        n_batch: int = DEFAULT_N_BATCH,
        kv_type: str = "f16",
        chat_template: str | os.PathLike[str] | None = None,
        lora: LoraArgument = None,
        lora_path: str | os.PathLike[str] | None = None,
        lora_scale: float = 1.0,
        draft_model: DraftModel = None,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
        use_mmap: bool = True,
        verbose: bool = False,
        on_load: Callable[[int, int], None] | None = None,
        on_compile: Callable[[str, int, int], None] | None = None,
        **llama_cpp: Unpack[LlamaCppArguments],
    ) -> None:
        check_arguments(llama_cpp)
        started = time.perf_counter()
        if isinstance(draft_model, str | os.PathLike):
            draft_model = Path(draft_model).absolute()
        self._path = str(Path(model_path).absolute())
        self._how: dict[str, Any] = {
            "n_ctx": n_ctx,
            "n_threads": n_threads,
            "n_batch": n_batch,
            "kv_type": kv_type,
            "cache_bytes": cache_bytes,
            "use_mmap": use_mmap,
            "draft_model": draft_model,
        }
        self._own_draft: OpenModel | None = None
        self._lock = threading.Lock()
        self._file = QlmFile.open(model_path, use_mmap=use_mmap, on_progress=on_load)
        try:
            self._tokenizer = load_tokenizer(self._file.tokenizer, self._file.tokenizer_blob)
            self._chat_template: ChatTemplate | None = None
            if chat_template is not None:
                self.chat_template = chat_template
            self._lora = lora_scales(lora, lora_path, lora_scale)
            adapter = load_adapter(self._lora, self._file)
            if isinstance(draft_model, Path):
                draft_model = self._own_draft = OpenModel(
                    draft_model,
                    n_ctx=n_ctx_beside(
                        draft_model, n_ctx or self._file.config.max_position_embeddings
                    ),
                    n_threads=n_threads,
                    n_batch=n_batch,
                    kv_type=kv_type,
                    use_mmap=use_mmap,
                    on_compile=on_compile,
                )
            self._guesser = guesser_of(draft_model, self._tokenizer)
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
            if self._own_draft is not None:
                self._own_draft.close()
            raise
        load_seconds = time.perf_counter() - started
        self._hooks: tuple[Hooks, ...] = ()
        self._owner: OpenModel | None = None
        self._guests: set[OpenModel] = set()
        self._begin(adapter, load_seconds)
        if verbose:
            notice(
                f"loaded {os.fspath(model_path)} in {load_seconds:.2f} s: "
                f"{self.n_ctx} tokens of context, {self._engine.n_threads} threads"
            )

    def _begin(self, adapter: Adapter | None, load_seconds: float) -> None:
        """Have nothing evaluated yet."""
        session = Session(self._engine, cache_bytes=self._how["cache_bytes"])
        self._session = session.under(adapter)
        # Hooks are given an answer token by token.
        guesser = None if self._hooks else self._guesser
        self._generator = Generator(
            self._session, self._lock, self._tokenizer, guesser, load_seconds=load_seconds
        )
        self._transcript = Transcript(self._tokenizer)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as path and options: a process that unpickles it opens the file anew."""
        if self._hooks:
            raise TypeError("a model with hooks cannot be pickled: pickle the one it was made of")
        template = None if self._chat_template is None else self._chat_template.source
        how = {**self._how, "chat_template": template, "lora": self._lora}
        return _reopened, (type(self), self._path, how)

    def __repr__(self) -> str:
        state = f", {len(self._lora)} LoRA adapters" if self._lora else ""
        state += ", with hooks" * bool(self._hooks) + ", closed" * self._session.closed
        return (
            f"<{type(self).__name__} {self._path}: {self.config.model_type}, "
            f"{self.config.num_hidden_layers} layers, {self.n_ctx} tokens of context, "
            f"{self._engine.n_threads} threads{state}>"
        )

    def _repr_html_(self) -> str:
        """Show a notebook what the model is."""
        import html

        config = self.config
        rows = {
            "file": self._path,
            "model": f"{config.model_type}, {config.num_hidden_layers} layers of "
            f"{config.hidden_size}, vocabulary of {config.vocab_size}",
            "weights": ", ".join(sorted({t.type for t in self._file.tensors.values()})),
            "context": f"{self.n_ctx} tokens, keys and values in {self._how['kv_type']}",
            "threads": self._engine.n_threads,
            **{f"LoRA, times {scale:g}": path for path, scale in self._lora.items()},
        }
        cells = (f"<tr><th>{k}</th><td>{html.escape(str(v))}</td></tr>" for k, v in rows.items())
        return f"<table>{''.join(cells)}</table>"

    def cancel(self) -> None:
        """End every answer that is in the making or waits for its turn; from any thread.

        Each ends with what it has, its `finish_reason` is `cancelled`. Later calls are
        not affected.
        """
        for model in (self, *self._guests):
            model._generator.cancel()

    def close(self) -> None:
        """Free the model; streams that are still open then raise ValueError."""
        with self._lock:
            self._end()

    def _end(self) -> None:
        for guest in tuple(self._guests):
            guest._end()
        self._generator.close()
        if not self._session.closed:
            self._session.close()
            self._engine.close()
            if self._owner is None:
                self._file.close()
                if self._own_draft is not None:
                    self._own_draft.close()
            else:
                self._owner._guests.discard(self)

    @property
    def model_path(self) -> str:
        """The model's file."""
        return self._path

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
    def lora(self) -> dict[str, float]:
        """Paths of the LoRA adapters in use and their scales; or set them, as `Llama` takes them.

        Answers that have begun go on as they began. To use several at once, in threads or
        by turns, see `with_lora`.
        """
        return dict(self._lora)

    @lora.setter
    def lora(self, lora: LoraArgument) -> None:
        scales = lora_scales(lora)
        self._session = self._session.under(load_adapter(scales, self._file))
        self._generator = self._generator.under(self._session)
        self._lora = scales

    def with_lora(self, lora: LoraArgument) -> Self:
        """Return this model under other LoRA adapters, beside this one.

        It shares everything else: the weights, the engine and its lock, the memory for
        conversations (which never mix). Closing one of them closes all. The adapters stay
        in memory as long as what is returned.

        Parameters
        ----------
        lora : str, path, mapping of str to float, sequence or None
            As `Llama` takes it, which says what is raised; None is the model as it is.
        """
        other = object.__new__(type(self))
        vars(other).update(vars(self))
        other.lora = lora
        return other

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

    def _text_ids(self, text: str | Sequence[int], *, add_eos: bool = False) -> list[int]:
        """Tokens of a text to read, as the model was trained to read one; or those given."""
        if isinstance(text, str):
            return self._tokenizer.encode(
                text, add_special=True, parse_special=False, add_eos=add_eos
            )
        return self._checked(text)

    def _engine_for(
        self, *, n_ctx: int, n_slots: int, adapter: Adapter | None, watch: Watch | None = None
    ) -> Engine:
        """Return an engine of the same model for other sequences; to be closed.

        It has this model's hooks, or those of `watch`, which sees texts in one piece.
        """
        together = self._engine.n_batch if watch is None else n_ctx
        if watch is None and self._hooks:
            watch = Watch(activation_shapes(self.config), self._hooks)
        engine = Engine(
            self._file,
            n_ctx=n_ctx,
            n_threads=self._engine.n_threads,
            n_slots=n_slots,
            n_batch=max(together, n_slots),
            kv_type=self._how["kv_type"],
            on_compile=CompileNotice(),
            observer=None if watch is None else watch.observer,
        )
        if adapter is not None:
            engine.adapt(adapter)
        return engine

    def _checked(self, token_ids: Iterable[int]) -> list[int]:
        ids = [int(token) for token in token_ids]
        for token in ids:
            if not 0 <= token < self.config.vocab_size:
                raise ValueError(
                    f"expected token ids in 0..{self.config.vocab_size - 1}, found {token}"
                )
        return ids


def _reopened(kind: type[OpenModel], path: str, how: dict[str, Any]) -> OpenModel:
    return kind(path, **how)
