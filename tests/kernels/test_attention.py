"""Attention in chunks over the cache, of either type, against the plain definition."""

from __future__ import annotations

import numpy as np
import pytest
from packing import address, aligned, aligned_copy, gamma, padded

from qllama.kernels import reference
from qllama.kernels._jit import njit
from qllama.kernels.attention import (
    attend_chunk,
    chunk_scratch_bytes,
    pack_query,
    query_bytes,
)
from qllama.kernels.isa import current_isa
from qllama.kernels.kv_layout import CHUNK, KV_TYPES, Q8, append_key, append_value, chunk_bytes
from qllama.kernels.linear import linear
from qllama.kernels.partials import merge_partial, partial_bytes, reset_partial, write_output

N_KV_HEADS = 2
N_POSITIONS = 520
CAPACITY = 768
EDGES = np.array([0, 1, 15, 16, 255, 256, 257, 511, 519])
each_type = pytest.mark.parametrize("kv_type", range(len(KV_TYPES)), ids=KV_TYPES)
each_ratio = pytest.mark.parametrize("ratio", [1, 3, 4, 7])
each_head_dim = pytest.mark.parametrize("head_dim", [16, 64, 80, 96, 264])


class Cache:
    """Random keys and values of 520 positions, as numpy arrays and as the kernels hold them.

    Positions that no query may see hold other numbers, as after rewinding. `k` and `v`
    are what the cache is given, `held_k` and `held_v` what it holds.
    """

    def __init__(self, head_dim, kv_type, seed=0):
        rng = np.random.default_rng([seed, head_dim])
        shape = (CAPACITY, N_KV_HEADS, head_dim)
        self.k, self.v = (rng.standard_normal(shape).astype(np.float32) for _ in range(2))
        self.head_dim, self.head_size, self.kv_type = head_dim, padded(head_dim), kv_type
        size = CAPACITY // CHUNK * chunk_bytes(kv_type, self.head_size)
        self.keys, self.values = (aligned((N_KV_HEADS, size), np.uint8) for _ in range(2))
        append_all(
            kv_type,
            address(self.keys),
            address(self.values),
            self.keys.strides[0],
            self._padded(self.k),
            self._padded(self.v),
        )

    def _padded(self, values):
        padding = self.head_size - self.head_dim
        return aligned_copy(np.pad(values, ((0, 0), (0, 0), (0, padding))))

    def held(self, values):
        rounded = reference.kv_rounded(self._padded(values), KV_TYPES[self.kv_type])
        return rounded[..., : self.head_dim]

    def append(self, position, head):
        key, value = (
            aligned_copy(self._padded(a[position : position + 1, head : head + 1]))
            for a in (self.k, self.v)
        )
        keys, values = address(self.keys[head]), address(self.values[head])
        append_key(self.kv_type, keys, position, address(key), self.head_size)
        append_value(self.kv_type, values, position, address(value), self.head_size)

    def reference(self, q, positions, window=None, magnitude=False):
        k, v = (self.held(a)[:N_POSITIONS].astype(np.float64) for a in (self.k, self.v))
        if magnitude:
            v = np.abs(v)
        return reference.attention(self.read(q), k, v, positions, window)

    def read(self, q):
        """The queries that the kernel multiplies keys with, as float64."""
        if self.kv_type == Q8:
            rows = self._padded(q * np.float32(1 / np.sqrt(self.head_dim)))
            codes, scales = reference.quantize_activations(rows.reshape(-1, self.head_size))
            rows = reference.dequantize_activations(codes, scales).reshape(rows.shape)
            return rows[..., : self.head_dim].astype(np.float64) * np.sqrt(self.head_dim)
        return q.astype(np.float64)


@njit
def append_all(kv_type, keys, values, head_bytes, k, v):
    n_positions, n_heads, head_size = k.shape
    for position in range(n_positions):
        for head in range(n_heads):
            row = 4 * head_size * (position * n_heads + head)
            base = head_bytes * head
            append_key(kv_type, keys + base, position, k.ctypes.data + row, head_size)
            append_value(kv_type, values + base, position, v.ctypes.data + row, head_size)


def queries(head_dim, ratio, n_tokens):
    rng = np.random.default_rng([head_dim, ratio])
    return (2 * rng.standard_normal((n_tokens, N_KV_HEADS * ratio, head_dim))).astype(np.float32)


def attend(cache, q, positions, window=None, *, split=False):
    """Attention of queries (n_tokens, n_heads, head_dim) handled together.

    `split` computes all partials before it merges any, as threads do.
    """
    n_tokens, n_heads, head_dim = q.shape
    ratio = n_heads // N_KV_HEADS
    n_queries = n_tokens * ratio
    q = aligned_copy(q)
    seen = aligned((n_queries, 2), np.int32)
    seen[:, 1] = np.repeat(positions + 1, ratio)
    seen[:, 0] = np.maximum(seen[:, 1] - (window or CAPACITY), 0)
    chunks = range(seen.min() // CHUNK, (seen.max() - 1) // CHUNK + 1)
    out = np.full(q.shape, np.nan, np.float32)
    packed = aligned(n_queries * query_bytes(cache.head_size), np.uint8, fill=255)
    scratch = aligned(chunk_scratch_bytes(cache.head_size), np.uint8, fill=255)
    size = partial_bytes(cache.head_size) // 4
    kernel = linear("q8_0").address if cache.kv_type == Q8 else 0
    scale = np.float32(1 / np.sqrt(head_dim))
    for head in range(N_KV_HEADS):
        for i in range(n_queries):
            row = address(q[i // ratio, head * ratio + i % ratio])
            sizes = (n_queries, head_dim, cache.head_size)
            pack_query(cache.kv_type, row, scale, address(packed), i, *sizes)
        merged, partials = (aligned((n_queries, size), fill=np.nan) for _ in range(2))
        for row in merged:
            reset_partial(address(row), cache.head_size)
        for chunk in chunks:
            target = merged
            if split:
                target = partials
                for row in partials:
                    reset_partial(address(row), cache.head_size)
            attend_chunk(
                cache.kv_type,
                kernel,
                address(packed),
                n_queries,
                address(seen),
                address(cache.keys[head]),
                address(cache.values[head]),
                chunk,
                cache.head_size,
                address(target),
                target.strides[0],
                address(scratch),
            )
            if split:
                for row, partial in zip(merged, partials, strict=True):
                    merge_partial(address(row), address(partial), cache.head_size)
        for i, row in enumerate(merged):
            target = out[i // ratio, head * ratio + i % ratio]
            write_output(address(row), address(target), head_dim, cache.head_size)
    return out


def bound(cache, q, positions, window=None):
    """How far rounding may move the output: float64, like the output.

    S bounds sum |q_i k_i| * scale. A score is off by at most head_size + 4 roundings of S
    (one chain, the scale, the reference's own rounding); taking maxima off costs 2 of 2 S,
    once and at each merge. exp turns absolute errors of its argument into relative ones
    and adds 3e-7. Weights meet CHUNK + 2 roundings in the sum of values, their sum
    CHUNK / 16 + 5, each merge adds 5 and two exps to either, and the last quotient and
    the reference take 8. Codes of q8 add less: integers are summed exactly.
    """
    head_size = cache.head_size
    n_chunks = -(-int(positions.max() + 1) // CHUNK)
    ratio = q.shape[1] // N_KV_HEADS
    keys = np.repeat(np.abs(cache.held(cache.k)[:N_POSITIONS].astype(np.float64)), ratio, axis=1)
    s = np.einsum("thd,phd->htp", np.abs(cache.read(q)), keys).max(-1).T
    s /= np.sqrt(q.shape[-1])
    exponent = gamma(head_size + 4 + 4 + 4 * n_chunks) * s[..., None]
    sums = gamma(CHUNK + 2 + CHUNK / 16 + 5 + 10 * n_chunks + 8)
    exps = 3e-7 * (1 + 2 * n_chunks)
    return (2 * (exponent + exps) + sums) * cache.reference(q, positions, window, magnitude=True)


def assert_close(cache, q, positions, window=None, **how):
    error = np.abs(
        attend(cache, q, positions, window, **how) - cache.reference(q, positions, window)
    )
    assert (error <= bound(cache, q, positions, window)).all(), error.max()


@each_type
@each_ratio
@each_head_dim
def test_attention_around_chunk_edges_equals_the_reference(kv_type, ratio, head_dim):
    cache, q = Cache(head_dim, kv_type), queries(head_dim, ratio, len(EDGES))
    for group in np.array_split(np.arange(len(EDGES)), -(-len(EDGES) * ratio // 12)):
        assert_close(cache, q[group], EDGES[group])


@each_type
@pytest.mark.parametrize("window", [1, 2, 17, 255, 256, 257, 300, 519])
def test_attention_sliding_window_equals_the_reference(kv_type, window):
    cache, q = Cache(80, kv_type), queries(80, 3, 4)
    for positions in (np.array([0, 1, 16, 255]), np.array([256, 257, 511, 519])):
        assert_close(cache, q, positions, window)


@each_type
def test_attention_many_queries_together_equal_the_reference(kv_type):
    cache, q = Cache(16, kv_type), queries(16, 7, len(EDGES))
    assert_close(cache, q, EDGES)


@each_type
@pytest.mark.parametrize(("head_dim", "ratio"), [(16, 7), (64, 1), (80, 3), (264, 2)])
@pytest.mark.parametrize("window", [None, 100, 257])
def test_attention_has_the_same_bits_however_it_is_computed(kv_type, head_dim, ratio, window):
    cache, q = Cache(head_dim, kv_type), queries(head_dim, ratio, len(EDGES))
    alone = np.concatenate(
        [attend(cache, q[i : i + 1], EDGES[i : i + 1], window) for i in range(len(EDGES))]
    )
    for group in ([0, 1, 2], [3, 4, 5], [6, 7], [8], [0, 8], list(range(9))):
        for split in (False, True):
            out = attend(cache, q[group], EDGES[group], window, split=split)
            np.testing.assert_array_equal(out, alone[group], str((group, split)))


@each_type
@pytest.mark.parametrize("position", [0, 255, 256, 511])
@pytest.mark.parametrize("what", ["k", "v"])
def test_attention_one_lost_position_is_seen(kv_type, position, what):
    cache, q = Cache(64, kv_type), queries(64, 3, 1)
    at = np.array([511])
    expected, limit = cache.reference(q, at), bound(cache, q, at)
    getattr(cache, what)[position, 1] = 0
    cache.append(position, 1)
    error = np.abs(attend(cache, q, at) - expected)
    assert (error[:, 3:] > limit[:, 3:]).any()
    assert (error[:, :3] <= limit[:, :3]).all()


@each_type
def test_attention_dominant_key_far_behind_takes_all(kv_type):
    cache, q = Cache(64, kv_type), queries(64, 1, 1)
    cache.k[3] = 30 * q[0]
    for head in range(N_KV_HEADS):
        cache.append(3, head)
    at = np.array([519])
    np.testing.assert_allclose(attend(cache, q, at)[0], cache.held(cache.v)[3], rtol=1e-6)


@each_type
def test_attention_not_a_number_poisons_its_query_only(kv_type):
    cache, q = Cache(64, kv_type), queries(64, 3, 3)
    positions = np.array([10, 300, 519])
    clean = attend(cache, q, positions)
    q[1, 2, 5] = np.nan
    out = attend(cache, q, positions)
    assert np.isnan(out[1, 2]).all()
    out[1, 2] = clean[1, 2]
    np.testing.assert_array_equal(out, clean)


def test_attention_pass_is_shared_by_as_many_queries_as_a_register_tile():
    # 13 queries of one head take a full group and one more.
    cache, q = Cache(64, 0), queries(64, current_isa().widths[0] + 1, 1)
    assert_close(cache, q, np.array([519]))
