"""What a test must read and compute at the least, counted from the model's tensors.

Bytes: the weights as they are stored, once a step however many sequences share it;
a tied embedding counts once, as the output head, and single rows of the embedding
do not count; and the keys and values that each token sees. Activations and what is
written are left out: they stay in caches.

Operations: two for each weight of the layers and token, two for each weight of the
output head and token whose logits are wanted (the last of a prompt, each generated
one), and four for each query value and position seen (scores and outputs).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Protocol

from qllama.bench.plan import Test
from qllama.config import ModelConfig
from qllama.format import QlmFile
from qllama.kernels.kv_layout import CHUNK, KV_TYPES, chunk_bytes
from qllama.quant.types import BLOCK
from qllama.tensors import EMBEDDING, HEAD

__all__ = ["ModelCounts", "StoredTensor"]


class StoredTensor(Protocol):
    """What counting needs to know of a tensor."""

    @property
    def name(self) -> str:
        """Hugging Face's."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(n,) or (rows, k)."""

    @property
    def n_bytes(self) -> int:
        """As it is stored, padding included."""


@dataclass(frozen=True, slots=True)
class ModelCounts:
    """What a model holds, and what a token costs.

    Parameters
    ----------
    n_bytes, n_params : int
        Of all tensors, a tied embedding once.
    step_bytes : int
        Weights read by a step that wants logits.
    layer_weights, head_weights : int
        Elements of the matrices of the layers, and of the output head.
    kv_bytes : int
        Keys and values of one position, all layers.
    attention_ops : int
        Operations of one token's attention for each position it sees, all layers.
    sliding_window : int or None
        Positions that a token sees at most.
    """

    n_bytes: int
    n_params: int
    step_bytes: int
    layer_weights: int
    head_weights: int
    kv_bytes: int
    attention_ops: int
    sliding_window: int | None

    @classmethod
    def of(cls, file: QlmFile, kv_type: str) -> ModelCounts:
        """Count the tensors of a file, whose header alone is read.

        Parameters
        ----------
        file : QlmFile
        kv_type : str
            What keys and values are held in, one of `kv_layout.KV_TYPES`.
        """
        return cls.of_tensors(file.config, file.tensors.values(), kv_type)

    @classmethod
    def of_tensors(
        cls, config: ModelConfig, tensors: Iterable[StoredTensor], kv_type: str
    ) -> ModelCounts:
        """Count tensors that need not be in a file yet.

        Parameters
        ----------
        config : ModelConfig
        tensors : iterable of StoredTensor
            All that `qllama.tensors.expected_shapes` lists.
        kv_type : str
            As in `of`.
        """
        tensors = list(tensors)
        head = EMBEDDING if config.tie_word_embeddings else HEAD
        read = [t for t in tensors if t.name == head or t.name != EMBEDDING]
        layers = [t for t in read if t.name != head and len(t.shape) == 2]
        head_size = -(-config.head_dim // BLOCK) * BLOCK
        head_bytes = chunk_bytes(KV_TYPES.index(kv_type), head_size) // CHUNK
        return cls(
            n_bytes=sum(t.n_bytes for t in tensors),
            n_params=sum(prod(t.shape) for t in tensors),
            step_bytes=sum(t.n_bytes for t in read),
            layer_weights=sum(prod(t.shape) for t in layers),
            head_weights=sum(prod(t.shape) for t in tensors if t.name == head),
            kv_bytes=2 * config.num_hidden_layers * config.num_key_value_heads * head_bytes,
            attention_ops=4 * config.num_hidden_layers * config.q_dim,
            sliding_window=config.sliding_window,
        )

    def decode_bytes(self, test: Test) -> int:
        """Bytes that the decode steps of `test` read, its prompt aside."""
        seen = self._positions_seen(test.depth + test.n_prompt, test.n_gen)
        return test.n_gen * self.step_bytes + test.n_parallel * seen * self.kv_bytes

    def operations(self, test: Test) -> int:
        """Multiplications and additions of all of `test`."""
        n_logits = test.n_gen + bool(test.n_prompt)
        n_tokens = test.n_prompt + test.n_gen
        weights = n_tokens * self.layer_weights + n_logits * self.head_weights
        attention = self._positions_seen(test.depth, n_tokens) * self.attention_ops
        return test.n_parallel * (2 * weights + attention)

    def _positions_seen(self, first: int, n_tokens: int) -> int:
        """Positions that `n_tokens` tokens from position `first` on see, themselves too."""
        window = self.sliding_window or first + n_tokens
        return sum(min(position + 1, window) for position in range(first, first + n_tokens))
