"""Has models read windows and scores what they expected of each token.

Holds the logits of a slab of tokens at a time, of each model: a whole window's would take
a gigabyte at a large vocabulary and a long window.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from qllama.config import DEFAULT_N_BATCH
from qllama.errors import ContextLengthError, EvaluationError
from qllama.evaluation.scores import Comparison, compare, negative_log_likelihoods
from qllama.evaluation.windows import Windows, check_same_tokens, cut
from qllama.format import QlmFile
from qllama.generation.session import Evaluator
from qllama.model.engine import Engine
from qllama.model.warmup import OnCompile
from qllama.tokenizer import load_tokenizer

__all__ = ["Evaluation", "Results", "Settings", "score"]

_SLAB_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Settings:
    """How a text is read.

    Parameters
    ----------
    n_ctx : int
        Tokens of a window.
    max_windows : int or None
        How many windows to read; None reads all.
    n_threads : int or None
        Of each model; they take turns.
    kv_type : str
        What the model, not its base, holds keys and values in.
    """

    n_ctx: int = 512
    max_windows: int | None = None
    n_threads: int | None = None
    kv_type: str = "f16"


@dataclass(slots=True)
class Results:
    """What has been scored so far: a list entry a window.

    Parameters
    ----------
    nll : list of float64, (n_scored,)
        Negative log-likelihoods, in nats.
    comparisons : list of Comparison
        With the base; empty where there is none.
    """

    nll: list[npt.NDArray[np.float64]] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)

    @property
    def running_ppl(self) -> list[float]:
        """Perplexity of the windows up to each."""
        sums = np.cumsum([window.sum() for window in self.nll])
        counts = np.cumsum([window.size for window in self.nll])
        running: list[float] = np.exp(sums / counts).tolist()
        return running


def score(
    windows: Windows,
    model: Evaluator,
    base: Evaluator | None,
    results: Results,
    on_window: Callable[[], None],
    slab_rows: int = DEFAULT_N_BATCH,
) -> None:
    """Score the second half of every window.

    Parameters
    ----------
    windows : Windows
    model, base : Evaluator
        With at least the context of a window; without a `base` nothing is compared.
    results : Results
        Gets an entry more a window; right also after an exception.
    on_window : callable
        Called after each window.
    slab_rows : int
        Tokens whose logits are held at once.
    """
    for window in windows.tokens:
        tokens = window.tolist()
        # What comes before the first token that is scored needs no logits.
        for evaluator in (model, base):
            if evaluator is not None:
                evaluator.evaluate(tokens[: windows.first], position=0)
        nll, comparisons = [], []
        for start in range(windows.first, window.size - 1, slab_rows):
            slab = slice(start, min(start + slab_rows, window.size - 1))
            targets = window[slab.start + 1 : slab.stop + 1]
            logits = model.evaluate(tokens[slab], position=start, all_logits=True)
            if base is None:
                nll.append(negative_log_likelihoods(logits, targets))
            else:
                base_logits = base.evaluate(tokens[slab], position=start, all_logits=True)
                comparisons.append(compare(logits, base_logits, targets))
        if comparisons:
            results.comparisons.append(Comparison.joined(comparisons))
            nll = [part.nll for part in comparisons]
        results.nll.append(np.concatenate(nll))
        on_window()


class Evaluation:
    """Models that are ready to read a text.

    Parameters
    ----------
    model : Path
        A `.qlm` file.
    text : str
    where : str
        The text's name in errors.
    settings : Settings
    base : Path, optional
        A `.qlm` file of the same vocabulary, whose probabilities are the measure.
    on_compile : callable, optional
        As `Engine` calls it.

    Attributes
    ----------
    windows : Windows
        Of the text.
    results : Results
        What `run` has scored.

    Raises
    ------
    ContextLengthError
        When a window is longer than a model's context.
    EvaluationError
        When the text is too short, or the vocabularies are not the same.
    QlmFormatError, ModelNotFoundError, UnsupportedModelError
        When a file cannot be opened.
    """

    def __init__(
        self,
        model: Path,
        text: str,
        where: str,
        settings: Settings,
        base: Path | None = None,
        on_compile: OnCompile | None = None,
    ) -> None:
        self.results = Results()
        with ExitStack() as opened:
            # Everything that can be refused comes before what takes time.
            cuts, files = [], []
            for path in (model, base):
                if path is not None:
                    file = opened.enter_context(QlmFile.open(path))
                    _check_context(file, path, settings.n_ctx)
                    tokenizer = load_tokenizer(file.tokenizer, file.tokenizer_blob)
                    cuts.append(cut(text, where, tokenizer, settings.n_ctx, settings.max_windows))
                    files.append(file)
            self.windows = cuts[0]
            if base is not None:
                _check_same_size(model, files[0], base, files[1])
                check_same_tokens(str(model), cuts[0], str(base), cuts[1])
            rows = _SLAB_BYTES // (4 * files[0].config.vocab_size)
            self._slab_rows = min(max(1, rows), DEFAULT_N_BATCH)
            self._engines = [
                opened.enter_context(
                    closing(
                        Engine(
                            file,
                            n_ctx=settings.n_ctx,
                            n_threads=settings.n_threads,
                            kv_type=kv_type,
                            on_compile=on_compile,
                        )
                    )
                )
                for file, kv_type in zip(files, (settings.kv_type, "f16"), strict=False)
            ]
            self._opened = opened.pop_all()

    def __enter__(self) -> Evaluation:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._opened.close()

    def run(self, on_window: Callable[[], None]) -> None:
        """Score every window; `on_window` is called after each."""
        model, *others = self._engines
        base = next(iter(others), None)
        score(self.windows, model, base, self.results, on_window, self._slab_rows)


def _check_context(file: QlmFile, path: Path, n_ctx: int) -> None:
    limit = file.config.max_position_embeddings
    if n_ctx > limit:
        raise ContextLengthError(
            f"{path}: expected windows of at most the {limit} tokens of its context, "
            f"found {n_ctx}; choose a smaller -c"
        )


def _check_same_size(path: Path, file: QlmFile, base_path: Path, base: QlmFile) -> None:
    expected, found = file.config.vocab_size, base.config.vocab_size
    if found != expected:
        raise EvaluationError(
            f"{base_path}: expected the vocabulary of {path}, {expected} tokens, found {found}; "
            "choose two conversions of one model"
        )
