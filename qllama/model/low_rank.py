"""Low-rank phases of the compiled forward pass: what an adapter adds to a product.

To y = W x an adapter adds B (A x) in float32: `shrink` computes A x for all tokens, and
after a barrier `expand` adds B's part to each tile of y. Both are products by the float
kernel, so a token's bits do not depend on what is beside it. Throughout: `linear` is the
record of W, with `low_a` 0 where no adapter changes it; `model`, `thread` and `n_tokens`
as in `projections`.
"""

from __future__ import annotations

import numpy as np

from qllama.kernels import vector as v
from qllama.kernels._jit import njit
from qllama.kernels.activation import group_of
from qllama.kernels.isa import current_isa
from qllama.kernels.linear import call_linear
from qllama.quant.types import BLOCK, TILE_ROWS

__all__ = ["add_to_embedding", "expand", "shrink"]

_FLOAT = 4
_TILE_FLOATS = _FLOAT * TILE_ROWS
_BLOCK_FLOATS = _FLOAT * BLOCK
#: Tokens of one piece of work, whole groups of them: A has few rows to share out.
_TOGETHER = 4 * current_isa().widths[0]


@njit
def shrink(model, linear, activations, n_tokens, before, thread):
    """Pack A x of every token for `expand`; returns `before` plus the pieces of work.

    `activations` is the address of the packed float32 ones. Pieces go round the threads,
    from the one on whose turn it is after `before` pieces of other matrices.
    """
    if linear.low_a == 0:
        return before
    n_parts = (n_tokens + _TOGETHER - 1) // _TOGETHER
    n_pieces = linear.low_tiles * n_parts
    for piece in range(n_pieces):
        if (before + piece) % model.n_threads == thread:
            tile, part = divmod(piece, n_parts)
            _shrink_tile(model, linear, activations, n_tokens, tile, _TOGETHER * part, thread)
    return before + n_pieces


@njit
def _shrink_tile(model, linear, activations, n_tokens, tile, first, thread):
    """16 of A's rows times up to `_TOGETHER` tokens from `first` on."""
    rows = model.scratch + model.scratch_bytes * thread
    n_blocks = linear.n_blocks
    token_bytes = _BLOCK_FLOATS * n_blocks
    weights = linear.low_a + TILE_ROWS * token_bytes * tile
    inputs = activations + token_bytes * first
    n = min(_TOGETHER, n_tokens - first)
    call_linear(linear.low_kernel, (weights, inputs, rows, n_blocks, n, _TILE_FLOATS, 0, 0))
    # Blocks have room for two tiles: where there is no second one, B has zeros.
    is_alone = tile % 2 == 0 and tile + 1 == linear.low_tiles
    for t in range(n):
        group, width = group_of(first + t, n_tokens)
        packed = linear.low_packed + _BLOCK_FLOATS * linear.low_blocks * group
        packed += _FLOAT * (first + t - group + TILE_ROWS * width * tile)
        for i in range(TILE_ROWS):
            value = v.load_scalar(rows + _TILE_FLOATS * t + _FLOAT * i)
            v.store_scalar(packed + _FLOAT * width * i, value)
        if is_alone:
            for i in range(TILE_ROWS, BLOCK):
                v.store_scalar(packed + _FLOAT * width * i, np.float32(0.0))


@njit
def expand(linear, tile, first, n_tokens, out, stride):
    """Add B's part to one `tile` of y.

    `out` is the address of token `first`'s, `stride` bytes from one token to the next.
    """
    if linear.low_a != 0:
        token_bytes = _BLOCK_FLOATS * linear.low_blocks
        weights = linear.low_b + TILE_ROWS * token_bytes * tile
        inputs = linear.low_packed + token_bytes * first
        call_linear(
            linear.low_kernel, (weights, inputs, out, linear.low_blocks, n_tokens, stride, 1, 0)
        )


@njit
def add_to_embedding(table, token, n_tiles, out):
    """Add to one token's row of the embedding `table`, `n_tiles` tiles at address `out`.

    What `shrink` would compute is a row of A for each token.
    """
    if table.low_a != 0:
        row_bytes = _BLOCK_FLOATS * table.low_blocks
        inputs = table.low_a + row_bytes * token
        for tile in range(n_tiles):
            weights = table.low_b + TILE_ROWS * row_bytes * tile
            to = out + _TILE_FLOATS * tile
            call_linear(
                table.low_kernel,
                (weights, inputs, to, table.low_blocks, 1, _TILE_FLOATS, 1, 0),
            )
