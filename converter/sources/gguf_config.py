"""The model config that a GGUF file's metadata describes.

Owns the list of metadata keys: each is used, known to change nothing, or
refused. A key that is not on the list is refused too, because a model run
without what it asks for would be run wrongly. Reads no tensor data.

Reference: llama.cpp's `LLM_KV_NAMES` and the hyperparameters its `llama`,
`qwen2` and `qwen3` graphs read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from converter.fields import Fields, Refused
from converter.sources.gguf_header import GgufHeader
from converter.wording import quoted
from qllama.config import ModelConfig, RopeScaling
from qllama.errors import ConversionError, UnsupportedModelError

__all__ = ["ARCHITECTURES", "config_from_gguf"]

ARCHITECTURES = ("llama", "qwen2", "qwen3")
"""`llama` covers Llama, Mistral, SmolLM2 and their kin: the file's name for all of them."""

_USED = frozenset(
    {
        "context_length",
        "embedding_length",
        "block_count",
        "feed_forward_length",
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.value_length",
        "attention.layer_norm_rms_epsilon",
        "attention.sliding_window",
        "rope.dimension_count",
        "rope.freq_base",
        "rope.scale_linear",
        "rope.scaling.type",
        "rope.scaling.factor",
        "rope.scaling.attn_factor",
        "rope.scaling.original_context_length",
        "rope.scaling.yarn_ext_factor",
        "rope.scaling.yarn_attn_factor",
        "rope.scaling.yarn_beta_fast",
        "rope.scaling.yarn_beta_slow",
        "rope.scaling.yarn_log_multiplier",
    }
)

# vocab_size repeats the embedding's rows, which are what counts; the others are remarks.
_IGNORED = frozenset({"vocab_size", "rope.scaling.finetuned", "tensor_data_layout"})

_REFUSED: Refused = {
    key: (neutral, f"the model has {asked}, which qllama does not compute")
    for key, neutral, asked in (
        ("expert_count", (0,), "a mixture of experts"),
        ("expert_used_count", (0,), "a mixture of experts"),
        ("attention.causal", (True,), "attention that is not causal"),
        ("attention.clamp_kqv", (0.0,), "clamped queries, keys and values"),
        ("attention.max_alibi_bias", (0.0,), "ALiBi positions"),
        ("attention.scale", (0.0,), "an attention scale of its own (Granite)"),
        ("attn_logit_softcapping", (0.0,), "soft-capped attention"),
        ("final_logit_softcapping", (0.0,), "soft-capped logits"),
        ("embedding_scale", (0.0, 1.0), "scaled embeddings (Granite)"),
        ("residual_scale", (0.0, 1.0), "scaled residuals (Granite)"),
        ("logit_scale", (0.0, 1.0), "scaled logits (Granite)"),
        ("pooling_type", (0,), "pooled embeddings"),
        ("use_parallel_residual", (False,), "parallel residuals"),
    )
}
_UNKNOWN = "qllama does not know this key, and might run the model wrongly"


def config_from_gguf(path: Path, header: GgufHeader, *, rope_divisors: bool) -> ModelConfig:
    """Build the config of the model in a GGUF file.

    Parameters
    ----------
    path : Path
        For messages.
    header : GgufHeader
        Its tensor table tells what no key does: biases, a tied head and the
        vocabulary's size.
    rope_divisors : bool
        Whether the file divides rotary frequencies by a tensor.

    Raises
    ------
    UnsupportedModelError
        For an architecture, key or value that qllama does not compute.
    ConversionError
        For a key that is missing or of the wrong type.
    """
    arch = _architecture(path, header.metadata)
    prefix = f"{arch}."
    own = {k.removeprefix(prefix): v for k, v in header.metadata.items() if k.startswith(prefix)}
    values = _Keys(path, own, prefix)
    values.check_known(_USED | _IGNORED, _REFUSED, _UNKNOWN, neutral=())
    hidden_size = values.integer("embedding_length")
    n_layers = values.integer("block_count")
    if n_layers > len(header.tensors):
        # Before anything loops over layers that are not there.
        values.refuse("block_count", f"the file has only {len(header.tensors)} tensors")
    heads = values.integer("attention.head_count")
    head_dim = _head_dim(values, hidden_size, heads)
    try:
        return ModelConfig(
            model_type=arch,
            vocab_size=_vocab_size(path, header),
            hidden_size=hidden_size,
            intermediate_size=values.integer("feed_forward_length"),
            num_hidden_layers=n_layers,
            num_attention_heads=heads,
            num_key_value_heads=values.integer("attention.head_count_kv", heads),
            head_dim=head_dim,
            max_position_embeddings=values.integer("context_length"),
            rms_norm_eps=values.number("attention.layer_norm_rms_epsilon"),
            rope_theta=values.number("rope.freq_base", 10000.0),
            rope_scaling=_rope_scaling(values, rope_divisors),
            tie_word_embeddings="output.weight" not in header.tensors,
            attention_bias="blk.0.attn_q.bias" in header.tensors,
            attention_output_bias="blk.0.attn_output.bias" in header.tensors,
            mlp_bias="blk.0.ffn_gate.bias" in header.tensors,
            qk_norm=arch == "qwen3",
            sliding_window=values.integer("attention.sliding_window", 0) or None,
        )
    except UnsupportedModelError as e:
        raise UnsupportedModelError(f"{path}: {e}") from None


def _head_dim(values: _Keys, hidden_size: int, heads: int) -> int:
    if heads < 1:
        values.refuse("attention.head_count", "expected at least 1")
    head_dim = values.integer("attention.key_length", default=hidden_size // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if values.integer(key, head_dim) != head_dim:
            values.refuse(key, f"expected the width of a head, {head_dim}")
    return head_dim


def _vocab_size(path: Path, header: GgufHeader) -> int:
    embedding = header.tensors.get("token_embd.weight")
    if embedding is None:
        raise ConversionError(f"{path}: missing tensor(s): token_embd.weight")
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    rows = embedding.shape[0]
    if isinstance(tokens, list) and len(tokens) > rows:
        raise ConversionError(
            f"{path}: the tokenizer has {len(tokens)} tokens, token_embd.weight only {rows} rows"
        )
    return rows


class _Keys(Fields):
    """The metadata keys `ARCH.*`; what is a list of equal values counts as one of them."""

    def integer(self, key: str, default: int | None = None) -> int:
        """Return the integer `key`; see `Fields.integer`."""
        value = self.values.get(key)
        if not isinstance(value, list):
            return super().integer(key, default)
        if not value or value.count(value[0]) != len(value):
            self.refuse(key, "layers that differ are not supported")
        return _Keys(self.where, {key: value[0]}, self.prefix).integer(key)


def _architecture(path: Path, metadata: Mapping[str, Any]) -> str:
    arch = metadata.get("general.architecture")
    if not isinstance(arch, str):
        raise ConversionError(
            f"{path}: general.architecture: expected a name, found {quoted(arch)}"
        )
    kind = metadata.get("general.type", "model")
    if kind != "model":
        raise UnsupportedModelError(f"{path}: a GGUF {quoted(kind)}, expected a GGUF model")
    if arch not in ARCHITECTURES:
        raise UnsupportedModelError(
            f"{path}: architecture {quoted(arch)}; qllama runs {', '.join(ARCHITECTURES)}"
        )
    return arch


def _rope_scaling(values: _Keys, divisors: bool) -> RopeScaling | None:
    key = "rope.scaling.type"
    kind = values.text(key, default="linear")
    factor = values.number("rope.scaling.factor", 0.0)
    if factor == 0.0:
        factor = values.number("rope.scale_linear", 0.0)
    # As in llama.cpp, where 0 stands for "not set".
    scaled = kind != "none" and factor not in (0.0, 1.0)
    attention = values.number("rope.scaling.attn_factor", 1.0)
    if kind not in ("none", "linear", "yarn"):
        values.refuse(key, "expected none, linear or yarn")
    if values.number("rope.scaling.yarn_log_multiplier", 0.0) != 0.0:
        values.refuse("rope.scaling.yarn_log_multiplier", "expected 0")
    if attention != 1.0 and not (scaled and kind == "yarn"):
        values.refuse("rope.scaling.attn_factor", "expected 1 without yarn")
    if divisors:
        if scaled:
            values.refuse("rope.scaling.factor", "not together with a tensor rope_freqs.weight")
        return RopeScaling(rope_type="divisors")
    if not scaled:
        return None
    if kind == "linear":
        return RopeScaling(rope_type="linear", factor=factor)
    return _yarn(values, factor, attention)


def _yarn(values: _Keys, factor: float, attention: float) -> RopeScaling:
    if values.number("rope.scaling.yarn_ext_factor", 1.0) not in (-1.0, 1.0):
        values.refuse("rope.scaling.yarn_ext_factor", "expected 1")
    attention *= values.number("rope.scaling.yarn_attn_factor", 1.0)
    return RopeScaling(
        rope_type="yarn",
        factor=factor,
        original_max_position_embeddings=values.integer(
            "rope.scaling.original_context_length", default=values.integer("context_length")
        ),
        # ggml multiplies its factor into the same term that Hugging Face's replaces.
        attention_factor=None if attention == 1.0 else attention * (0.1 * math.log(factor) + 1.0),
        beta_fast=values.number("rope.scaling.yarn_beta_fast", 32.0),
        beta_slow=values.number("rope.scaling.yarn_beta_slow", 1.0),
    )
