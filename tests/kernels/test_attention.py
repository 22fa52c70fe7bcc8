"""Attention in chunks over the half-precision cache, against the plain definition."""

from __future__ import annotations

import numpy as np
import pytest
from packing import address, aligned, aligned_copy, gamma, pack_f32, padded

from qllama.kernels import reference
from qllama.kernels.attention import (
    CHUNK,
    append_key,
    append_value,
    attend_chunk,
    merge_partial,
    partial_bytes,
    reset_partial,
    write_output,
)
from qllama.kernels.isa import current_isa
from qllama.kernels.linear import linear

N_KV_HEADS = 2
N_POSITIONS = 520
CAPACITY = 768
EDGES = np.array([0, 1, 15, 16, 255, 256, 257, 511, 519])
each_ratio = pytest.mark.parametrize("ratio", [1, 3, 4, 7])
each_head_dim = pytest.mark.parametrize("head_dim", [16, 64, 80, 96])


class Cache:
    """Random keys and values of 520 positions, as numpy arrays and as the kernels hold them.

    Positions that no query may see hold other numbers, as after rewinding.
    """

    def __init__(self, head_dim, seed=0):
        rng = np.random.default_rng([seed, head_dim])
        shape = (CAPACITY, N_KV_HEADS, head_dim)
        # Halves, so that the cache holds exactly what the reference reads.
        self.k, self.v = (rng.standard_normal(shape).astype(np.float16) for _ in range(2))
        self.head_dim, self.head_size = head_dim, padded(head_dim)
        size = (N_KV_HEADS, CAPACITY * self.head_size)
        self.keys, self.values = (aligned(size, np.uint16) for _ in range(2))
        for position in range(CAPACITY):
            for head in range(N_KV_HEADS):
                self.append(position, head)

    def append(self, position, head):
        key, value = (aligned_copy(a[position, head].astype("f4")) for a in (self.k, self.v))
        keys, values = address(self.keys[head]), address(self.values[head])
        append_key(keys, position, address(key), self.head_dim, self.head_size)
        append_value(values, position, address(value), self.head_dim, CAPACITY)

    def reference(self, q, positions, window=None, magnitude=False):
        k, v = (a[:N_POSITIONS].astype(np.float64) for a in (self.k, self.v))
        if magnitude:
            v = np.abs(v)
        return reference.attention(q.astype(np.float64), k, v, positions, window)


def queries(head_dim, ratio, n_tokens):
    rng = np.random.default_rng([head_dim, ratio])
    return (2 * rng.standard_normal((n_tokens, N_KV_HEADS * ratio, head_dim))).astype(np.float32)


def attend(cache, q, positions, window=None, *, split=False, to_chunk_end=False):
    """Attention of queries (n_tokens, n_heads, head_dim) handled together.

    `split` computes all partials before it merges any, as threads do; `to_chunk_end`
    lets chunks run to their end, as beside a token at a later position.
    """
    n_tokens, n_heads, head_dim = q.shape
    ratio = n_heads // N_KV_HEADS
    n_queries = n_tokens * ratio
    end_seen = np.repeat(positions + 1, ratio).astype(np.int64)
    first_seen = np.maximum(end_seen - (window or CAPACITY), 0)
    size = partial_bytes(cache.head_size) // 4
    starts = list(range(first_seen.min() // CHUNK * CHUNK, end_seen.max(), CHUNK))
    out = np.full(q.shape, np.nan, np.float32)
    for head in range(N_KV_HEADS):
        mine = q[:, head * ratio : (head + 1) * ratio].reshape(n_queries, head_dim)
        packed = pack_f32(
            np.pad(mine, ((0, 0), (0, cache.head_size - head_dim))).astype(np.float32),
            current_isa(),
        )
        merged = aligned((n_queries, size), fill=np.nan)
        partials = aligned((len(starts), n_queries, size), fill=np.nan)
        scores, weights = (aligned((n_queries, CHUNK), fill=np.nan) for _ in range(2))
        for row in merged:
            reset_partial(address(row), cache.head_size)
        for i, start in enumerate(starts):
            end = start + CHUNK if to_chunk_end else min(start + CHUNK, end_seen.max())
            attend_chunk(
                linear("f16").address,
                address(packed),
                n_queries,
                first_seen,
                end_seen,
                address(cache.keys[head]),
                address(cache.values[head]),
                start,
                end,
                CAPACITY,
                cache.head_size,
                np.float32(1 / np.sqrt(head_dim)),
                address(scores),
                address(weights),
                address(partials[i]),
            )
            if not split:
                merge_all(merged, partials[i], cache.head_size)
        for partial in partials if split else ():
            copies = aligned(partial.shape, fill=np.nan)
            for row in copies:
                reset_partial(address(row), cache.head_size)
            merge_all(copies, partial, cache.head_size)
            merge_all(merged, copies, cache.head_size)
        for i, row in enumerate(merged):
            target = out[i // ratio, head * ratio + i % ratio]
            write_output(address(row), address(target), head_dim, cache.head_size)
    return out


def merge_all(merged, partials, head_size):
    for row, partial in zip(merged, partials, strict=True):
        merge_partial(address(row), address(partial), head_size)


def bound(cache, q, positions, window=None):
    """How far rounding may move the output: float64, like the output.

    S bounds sum |q_i k_i| * scale. A score is off by at most (head_size / 2 + 4) roundings
    of S (two chains of the float kernel, the scale, the reference's own rounding); taking
    maxima off costs 2 of 2 S, once and at each merge. exp turns absolute errors of its
    argument into relative ones and adds 3e-7. Weights meet CHUNK / 2 + 2 roundings in the
    sum of values, their sum CHUNK / 16 + 5, each merge adds 5 and two exps to either, and
    the last quotient and the reference take 8.
    """
    head_size = cache.head_size
    n_chunks = -(-int(positions.max() + 1) // CHUNK)
    ratio = q.shape[1] // N_KV_HEADS
    keys = np.repeat(np.abs(cache.k[:N_POSITIONS].astype(np.float64)), ratio, axis=1)
    s = np.einsum("thd,phd->htp", np.abs(q).astype(np.float64), keys).max(-1).T
    s /= np.sqrt(q.shape[-1])
    exponent = gamma(head_size / 2 + 4 + 4 + 4 * n_chunks) * s[..., None]
    sums = gamma(CHUNK / 2 + 2 + CHUNK / 16 + 5 + 10 * n_chunks + 8)
    exps = 3e-7 * (1 + 2 * n_chunks)
    return (2 * (exponent + exps) + sums) * cache.reference(q, positions, window, magnitude=True)


def assert_close(cache, q, positions, window=None, **how):
    error = np.abs(
        attend(cache, q, positions, window, **how) - cache.reference(q, positions, window)
    )
    assert (error <= bound(cache, q, positions, window)).all(), error.max()


@each_ratio
@each_head_dim
def test_attention_around_chunk_edges_equals_the_reference(ratio, head_dim):
    cache, q = Cache(head_dim), queries(head_dim, ratio, len(EDGES))
    for group in np.array_split(np.arange(len(EDGES)), -(-len(EDGES) * ratio // 12)):
        assert_close(cache, q[group], EDGES[group])


@pytest.mark.parametrize("window", [1, 2, 17, 255, 256, 257, 300, 519])
def test_attention_sliding_window_equals_the_reference(window):
    cache, q = Cache(80), queries(80, 3, 4)
    for positions in (np.array([0, 1, 16, 255]), np.array([256, 257, 511, 519])):
        assert_close(cache, q, positions, window)


def test_attention_many_queries_together_equal_the_reference():
    cache, q = Cache(16), queries(16, 7, len(EDGES))
    assert_close(cache, q, EDGES)


@pytest.mark.parametrize(("head_dim", "ratio"), [(16, 7), (64, 1), (80, 3)])
@pytest.mark.parametrize("window", [None, 100, 257])
def test_attention_has_the_same_bits_however_it_is_computed(head_dim, ratio, window):
    cache, q = Cache(head_dim), queries(head_dim, ratio, len(EDGES))
    alone = np.concatenate(
        [attend(cache, q[i : i + 1], EDGES[i : i + 1], window) for i in range(len(EDGES))]
    )
    for group in ([0, 1, 2], [3, 4, 5], [6, 7], [8], list(range(9))):
        for how in ({}, {"split": True}, {"to_chunk_end": True}):
            out = attend(cache, q[group], EDGES[group], window, **how)
            np.testing.assert_array_equal(out, alone[group], str((group, how)))


@pytest.mark.parametrize("position", [0, 255, 256, 511])
@pytest.mark.parametrize("what", ["k", "v"])
def test_attention_one_lost_position_is_seen(position, what):
    cache, q = Cache(64), queries(64, 3, 1)
    at = np.array([511])
    expected, limit = cache.reference(q, at), bound(cache, q, at)
    getattr(cache, what)[position, 1] = 0
    cache.append(position, 1)
    error = np.abs(attend(cache, q, at) - expected)
    assert (error[:, 3:] > limit[:, 3:]).any()
    assert (error[:, :3] <= limit[:, :3]).all()


def test_attention_dominant_key_far_behind_takes_all():
    cache, q = Cache(64), queries(64, 1, 1)
    cache.k[3] = (30 * q[0]).astype(np.float16)
    for head in range(N_KV_HEADS):
        cache.append(3, head)
    at = np.array([519])
    np.testing.assert_allclose(attend(cache, q, at)[0], cache.v[3].astype("f4"), rtol=1e-6)


def test_attention_not_a_number_poisons_its_query_only():
    cache, q = Cache(64), queries(64, 3, 3)
    positions = np.array([10, 300, 519])
    clean = attend(cache, q, positions)
    q[1, 2, 5] = np.nan
    out = attend(cache, q, positions)
    assert np.isnan(out[1, 2]).all()
    out[1, 2] = clean[1, 2]
    np.testing.assert_array_equal(out, clean)


@each_head_dim
def test_append_writes_one_position_only(head_dim):
    cache = Cache(head_dim)
    before = cache.keys.copy(), cache.values.copy()
    key, value = (aligned_copy(np.arange(1, head_dim + 1, dtype="f4") + n) for n in (0, 0.5))
    keys, values = address(cache.keys[1]), address(cache.values[1])
    append_key(keys, 300, address(key), head_dim, cache.head_size)
    append_value(values, 300, address(value), head_dim, CAPACITY)
    tiles = cache.keys[1].reshape(-1, cache.head_size, 16)
    np.testing.assert_array_equal(tiles[300 // 16, :head_dim, 300 % 16].view("f2"), key)
    rows = cache.values[1].reshape(-1, CAPACITY, 16)[:, 300]
    np.testing.assert_array_equal(rows.reshape(-1)[:head_dim].view("f2"), value)
    for now, old in zip((cache.keys, cache.values), before, strict=True):
        assert (now != old).sum() <= head_dim
        np.testing.assert_array_equal(now[0], old[0])
