"""Between what a session holds and what a state file says (`format.state`)."""

from __future__ import annotations

import numpy as np

from qllama.format.state import State, StateShape
from qllama.generation.session import Session
from qllama.generation.transcript import Transcript
from qllama.kernels.kv_layout import KV_TYPES
from qllama.kernels.kv_rows import row_widths, to_chunks, to_rows
from qllama.model.engine import Engine

__all__ = ["capture", "restore", "state_shape"]


def state_shape(engine: Engine, fingerprint: bytes) -> StateShape:
    """Return what a state must be of.

    Parameters
    ----------
    engine : Engine
    fingerprint : bytes
        Of its file.
    """
    layout = engine.kv_layout
    n_codes, n_halves = row_widths(layout.kv_type, layout.head_size)
    return StateShape(
        fingerprint,
        KV_TYPES[layout.kv_type],
        layout.n_layers,
        layout.n_kv_heads,
        n_codes,
        n_halves,
        n_ctx=engine.n_ctx,
        vocab_size=engine.config.vocab_size,
    )


def capture(engine: Engine, session: Session, transcript: Transcript) -> State:
    """Copy what a session holds, and the turn of a chat that it belongs to.

    Parameters
    ----------
    engine : Engine
    session : Session
        Of the engine.
    transcript : Transcript
        Of the same chats.
    """
    tokens, chunks = session.snapshot()
    layout = engine.kv_layout
    rows = to_rows(chunks, layout.kv_type, layout.head_size, tokens.size)
    turn = transcript.turn_of(tokens.tolist()) if tokens.size else None
    if turn is None:
        return State(tokens, rows)
    return State(np.array(turn.token_ids, np.int32), rows, turn.prompt, turn.n_prompt)


def restore(state: State, engine: Engine, session: Session, transcript: Transcript) -> None:
    """Have a session hold what another held.

    Parameters
    ----------
    state : State
        Of the engine's shape.
    engine, session, transcript
        As in `capture`.
    """
    layout = engine.kv_layout
    chunks = to_chunks(state.rows, layout.kv_type, layout.head_size)
    session.restore(state.tokens[: state.n_held], chunks)
    if state.prompt:
        transcript.restore(state.prompt, state.tokens.tolist(), state.n_prompt)
