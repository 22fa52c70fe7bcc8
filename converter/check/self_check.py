"""The questions that a new `.qlm` file must answer rightly before it gets its name.

Owns the thresholds, and what is an error and what a notice: an error is what cannot be
unless the conversion is wrong. Design and measurements: `docs/conversion.md`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from converter.check.forward import Reading, Text, hidden_states, losses
from converter.check.readings import Probe, Repetition, alternatives, looks_trained
from converter.check.steps import run_limited
from converter.check.weights import SourceWeights, StoredWeights, Weights
from converter.quality import Quality
from converter.sources.base import CheckpointSource
from qllama.errors import ConversionError, TokenizerError
from qllama.format import QlmFile
from qllama.progress import OnProgress
from qllama.tokenizer import ChatTemplate, Tokenizer, load_tokenizer

__all__ = ["TEXT", "self_check"]

TEXT = (
    "The sun rises in the east and sets in the west. In the morning people wake up, have "
    "breakfast and go to work or to school, and in the evening they come home again."
)
_MAX_TOKENS = 64
_COMPARED_LAYERS = 2
# Those of published models take some hundreds; loops may be written that never end.
_TEMPLATE_STEPS = 1_000_000
# Ten times the error of the worst matrix: states sum up the errors of a dozen matrices, and
# an outlier among them. A wrong tensor or order of rows is off by 100 % and more.
_ERROR_GROWTH, _LEAST_ERROR, _MOST_ERROR = 10.0, 1e-3, 0.5
# Shorter than any state but one of zeros.
_NO_LENGTH = 1e-30
# In parts of the loss of a blind guess, ln(vocab_size): what no model does that is read
# rightly, and what one does.
_BROKEN, _WORKING = 0.8, 0.6
# Of words far away: a weak model hardly repeats these (noise in SmolLM2's weights: up to 0.99),
# but is not misled as by a base of a tenth (from 1.1 on).
_MISLED = 1.0


def self_check(
    path: Path,
    source: CheckpointSource,
    quality: Mapping[str, Quality],
    on_progress: OnProgress,
) -> tuple[str, ...]:
    """Check a file that was just written from `source`.

    Parameters
    ----------
    path : Path
        The file.
    source : CheckpointSource
    quality : mapping
        What quantizing cost each matrix.
    on_progress : callable
        Told of layers.

    Returns
    -------
    tuple of str
        What is odd, but may be the model's own nature.

    Raises
    ------
    ConversionError
        When the file is not what the source says; the message does not name the file.
    QlmFormatError
        When it cannot be read.
    """
    with QlmFile.open(path) as file:
        stored = StoredWeights(file)
        tokenizer = load_tokenizer(file.tokenizer, file.tokenizer_blob)
        notices = [*_tokenizer_notices(tokenizer, file.config.vocab_size)]
        tokens = tokenizer.encode(TEXT, add_special=True, parse_special=False, add_eos=False)
        if len(tokens) < 2:  # Without a letter of English, any tokens must do.
            tokens = list(range(file.config.vocab_size))
        tokens = tokens[: min(_MAX_TOKENS, file.config.max_position_embeddings)]
        text = Text(tokens, range(len(tokens)), Reading(file.config.rope_theta))
        unquantized = SourceWeights(source.config, source.tensors)
        _compare_states(stored, unquantized, text, quality)
        if looks_trained(stored):
            notices += _language_notices(stored, tokenizer, text, on_progress)
    return tuple(notices)


def _tokenizer_notices(tokenizer: Tokenizer, vocab_size: int) -> Iterator[str]:
    """Round-trip the text, and render the chat template."""
    ids = tokenizer.encode(TEXT, add_special=False, parse_special=False)
    if max(ids, default=0) >= vocab_size:
        raise ConversionError(
            f"the tokenizer gives the id {max(ids)}, but the model has {vocab_size} tokens; "
            "it belongs to another model"
        )
    if (found := tokenizer.decode(ids)) != TEXT:
        if ids and tokenizer.config.unk_token_id not in ids:
            raise ConversionError(f"the tokenizer turns {TEXT[:40]!r} into {found[:40]!r}")
        yield f"the tokenizer does not know {'all letters' if ids else 'a letter'} of English"
    if tokenizer.config.chat_template is None:
        return
    try:
        template = ChatTemplate.of(tokenizer)
        question = [{"role": "user", "content": TEXT}]
        shown = run_limited(lambda: template.render(question), _TEMPLATE_STEPS)
    except TokenizerError as error:
        yield f"chat will not work: {error}"
    else:
        if TEXT not in shown:
            yield "chat will not work: the chat template leaves the user's message out"


def _compare_states(
    stored: Weights, unquantized: Weights, text: Text, quality: Mapping[str, Quality]
) -> None:
    """Run the first layers with the weights of the source and with those of the file."""
    n_layers = min(_COMPARED_LAYERS, stored.config.num_hidden_layers)
    found, expected = (
        hidden_states(weights, [text], n_layers, lambda done, total: None)[0].astype(np.float64)
        for weights in (stored, unquantized)
    )
    if not np.isfinite(expected).all():
        raise ConversionError(
            f"after {n_layers} layers the checkpoint's own states are not finite: its weights "
            "are damaged, or too large for float32; download it again"
        )
    difference, length = (np.linalg.norm(x, axis=1) for x in (found - expected, expected))
    # States of zeros, such as those of a BOS without an embedding, must stay zeros.
    error = difference / np.maximum(length, _NO_LENGTH)
    worst = max(figures.relative_rmse for figures in quality.values())
    allowed = min(_ERROR_GROWTH * worst + _LEAST_ERROR, _MOST_ERROR)
    if not (typical := float(np.median(error))) <= allowed:
        raise ConversionError(
            f"after {n_layers} layers the file's states differ from the checkpoint's by "
            f"{typical:.0%}, expected at most {allowed:.1%}; this is a bug in qllama: report it"
        )


def _language_notices(
    weights: Weights, tokenizer: Tokenizer, english: Text, on_progress: OnProgress
) -> Iterator[str]:
    """Ask a trained model to read English, and to repeat words."""
    blind = math.log(weights.config.vocab_size)
    probe = Probe.of(tokenizer, weights.config)
    texts = [english, *([] if probe is None else probe.texts(english.reading))]
    first, *repeated = _states(weights, texts, "checking that it can read", on_progress)
    loss = float(losses(weights, first[:-1], english.tokens[1:]).mean())
    if not loss <= _BROKEN * blind:
        yield (
            f"it reads English at {loss:.1f} nats a token, {blind:.1f} are a blind guess; "
            "is the tokenizer the model's own?"
        )
    if probe is None:
        return
    (stated,) = probe.losses(weights, repeated)
    # A loss may be NaN, which nothing is true of.
    if not (stated.near <= _BROKEN * blind and stated.far <= _BROKEN * blind):
        _refuse_better_reading(weights, probe, stated, on_progress)
        yield (
            f"it repeats words at {stated.near:.1f} nats each, and {stated.far:.1f} after "
            f"{probe.far} tokens; {blind:.1f} are a blind guess; is its config complete?"
        )


def _refuse_better_reading(
    weights: Weights, probe: Probe, stated: Repetition, on_progress: OnProgress
) -> None:
    """Compare with other readings of q and k where the stated one is worse than weak.

    Raises
    ------
    ConversionError
        When one of them can do what the stated one cannot.
    """
    blind = math.log(weights.config.vocab_size)
    is_near = not stated.near <= _BROKEN * blind
    if not is_near and stated.far <= _MISLED * blind:
        return
    readings = alternatives(weights.config)
    texts = [text for reading in readings for text in probe.texts(reading)]
    states = _states(weights, texts, "comparing rotary embeddings", on_progress)
    found = probe.losses(weights, states)
    if is_near:
        before, after, where = stated.near, [r.near for r in found], ""
    else:
        before, after, where = stated.far, [r.far for r in found], f" after {probe.far} tokens"
    fits = {r: loss for r, loss in zip(readings, after, strict=True) if loss <= _WORKING * blind}
    if not fits:
        return
    best = min(fits, key=lambda reading: fits[reading])
    if not best.scaled:
        wrong = "rope_scaling does not fit the weights: without it"
        advice = "correct the checkpoint's config, or give one with --config"
    elif best.rows == "kept":
        others = " or ".join(f"{r.rope_theta:g}" for r in fits if r.rows == "kept" and r.scaled)
        wrong = f"rope_theta {weights.config.rope_theta:g} does not fit the weights: with {others}"
        advice = "correct the checkpoint's config, or give one with --config"
    else:
        wrong = f"the rows of q and k are in the wrong order: taken {best.rows}"
        advice = "give the other --rope-layout, where the format leaves that open"
    raise ConversionError(
        f"{wrong}, the model repeats words{where} at {fits[best]:.1f} nats each instead of "
        f"{before:.1f}; {advice}; --no-check takes it as it is"
    )


def _states(
    weights: Weights, texts: Sequence[Text], stage: str, on_progress: OnProgress
) -> list[npt.NDArray[np.float32]]:
    """States of all tokens after the last layer."""
    n_layers = weights.config.num_hidden_layers
    return hidden_states(
        weights, texts, n_layers, lambda done, total: on_progress(stage, done, total)
    )
