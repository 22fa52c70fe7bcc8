"""`Llama`: the Python face of qllama.

Owns its description, and saved states.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import overload

from qllama.api.pretrained import PretrainedModel
from qllama.api.state import capture, restore, state_shape
from qllama.format import state as state_file
from qllama.generation.session import Session

__all__ = ["Llama"]


class Llama(PretrainedModel):
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
    lora : str, path, mapping of str to float, sequence, optional
        Directory of a PEFT LoRA adapter, or several, computed beside the weights: a list of
        directories, or of pairs with a scale, or a mapping of directory to scale. `lora` and
        `with_lora` change it (`docs/api.md`).
    lora_path, lora_scale : str, float
        The same for one adapter, as llama-cpp-python spells it.
    draft_model : str, path, Llama or LlamaPromptLookupDecoding, optional
        Who guesses tokens that are evaluated ahead (`draft_max` of `generate`): a smaller
        model of the same vocabulary, by its file or open already, or prompt lookup with
        other numbers than by default. It changes no answer.
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
    **llama_cpp
        What llama-cpp-python takes to say where it computes, `n_gpu_layers` and its like;
        see `LlamaCppArguments`. It changes nothing.

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
    ConversionError
        When an adapter is damaged, or does not fit the model.
    TokenizerError, ValueError
        When the draft model has another vocabulary, `chat_template` is no template, a
        count is out of range or `kv_type` unknown.

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
        session = self._session
        shape = self._state_shape(session)
        with self._lock:
            state = capture(self._engine, session, self._transcript)
        if path is None:
            return b"".join(state_file.encode(state, shape))
        state_file.store(Path(path), state, shape)
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
            When it is damaged, no state, or one of another model, other adapters, another `kv_type`
            or a longer context.
        """
        session = self._session
        shape = self._state_shape(session)
        if isinstance(state, str | os.PathLike):
            loaded = state_file.load(Path(state), shape)
        else:
            loaded = state_file.decode(state, shape)
        with self._lock:
            restore(loaded, self._engine, session, self._transcript)

    def _state_shape(self, session: Session) -> state_file.StateShape:
        fingerprint = self._file.fingerprint
        if (adapter := session.adapter) is not None:
            fingerprint = hashlib.sha256(fingerprint + adapter.digest).digest()
        return state_shape(self._engine, fingerprint)
