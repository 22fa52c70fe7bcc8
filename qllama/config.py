"""What a model is: frozen records of its hyperparameters and of its tokenizer.

Field names are Hugging Face's. A variant of the Llama architecture is a field
here or it is not supported; unknown keys raise. Knows no file format.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast

from qllama.errors import UnsupportedModelError

__all__ = [
    "DEFAULT_N_BATCH",
    "MAX_QUERY_HEADS_PER_KV_HEAD",
    "ModelConfig",
    "RopeScaling",
    "TokenizerConfig",
]

DEFAULT_N_BATCH = 512
"""Tokens that are evaluated together, unless a caller says how many."""

MAX_QUERY_HEADS_PER_KV_HEAD = 64
"""How many one lane buffer of the attention kernel holds."""

RopeType = Literal["linear", "llama3", "yarn", "divisors"]
TokenizerKind = Literal["tokenizers", "sentencepiece"]
_Record = TypeVar("_Record")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UnsupportedModelError(message)


def _from_dict(cls: type[_Record], data: Mapping[str, Any]) -> _Record:
    """Build the dataclass `cls` from `data`; unknown and missing keys raise."""
    fields = {f.name: f for f in dataclasses.fields(cast(Any, cls))}
    unknown = sorted(set(data) - set(fields))
    _require(not unknown, f"{cls.__name__}: unknown field(s) {', '.join(unknown)}")
    missing = [
        name
        for name, f in fields.items()
        if name not in data
        and f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
    ]
    _require(not missing, f"{cls.__name__}: missing field(s) {', '.join(missing)}")
    return cls(**data)


def _check_types(record: Any) -> None:
    """Check that int, float, bool and str fields hold what their annotation says."""
    allowed: dict[str, tuple[type, ...]] = {
        "int": (int,),
        "float": (int, float),
        "bool": (bool,),
        "str": (str,),
        "int | None": (int, type(None)),
        "float | None": (int, float, type(None)),
        "str | None": (str, type(None)),
    }
    for f in dataclasses.fields(record):
        types = allowed.get(str(f.type))
        value = getattr(record, f.name)
        if types is None:
            continue
        good = isinstance(value, types) and (isinstance(value, bool) <= (bool in types))
        _require(
            good and not (isinstance(value, float) and not math.isfinite(value)),
            f"{type(record).__name__}.{f.name}: expected {f.type}, found {value!r}",
        )


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How rotary frequencies are stretched for long contexts.

    Parameters
    ----------
    rope_type : str
        `linear` divides every frequency by `factor`; `llama3` is Llama 3.1's
        piecewise rule; `yarn` is Peng et al. 2023 (arXiv:2309.00071);
        `divisors` divides frequency i by element i of the tensor
        `model.rope_divisors`, as GGUF files carry it.
    factor, low_freq_factor, high_freq_factor, original_max_position_embeddings
        As in Hugging Face's `rope_scaling`.
    attention_factor, beta_fast, beta_slow
        Of `yarn` only; `attention_factor` None means `0.1 ln(factor) + 1`.
    """

    rope_type: RopeType
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int | None = None
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0

    def __post_init__(self) -> None:
        _check_types(self)
        known = ("linear", "llama3", "yarn", "divisors")
        _require(
            self.rope_type in known,
            f"rope_scaling.rope_type: expected one of {', '.join(known)}, found {self.rope_type!r}",
        )
        _require(self.factor > 0, f"rope_scaling.factor: expected > 0, found {self.factor}")
        _require(
            self.original_max_position_embeddings is not None
            or self.rope_type not in ("llama3", "yarn"),
            f"rope_scaling: {self.rope_type} needs original_max_position_embeddings",
        )
        original = self.original_max_position_embeddings
        _require(
            original is None or 0 < original < 2**31,
            f"rope_scaling.original_max_position_embeddings: expected 1..2**31-1, found {original}",
        )
        # What follows would divide by zero, or take its logarithm.
        _require(
            self.rope_type != "llama3" or self.low_freq_factor < self.high_freq_factor,
            f"rope_scaling.high_freq_factor: expected more than low_freq_factor "
            f"{self.low_freq_factor}, found {self.high_freq_factor}",
        )
        for name in ("beta_fast", "beta_slow", "attention_factor"):
            value = getattr(self, name)
            _require(
                value is None or value > 0, f"rope_scaling.{name}: expected > 0, found {value}"
            )


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Hyperparameters of one Llama-family decoder.

    Parameters
    ----------
    model_type : str
        Family name as in `config.json` (`llama`, `qwen2`, ...); information only,
        every difference between families is a field of its own.
    attention_bias, attention_output_bias, mlp_bias : bool
        Biases on q/k/v, on the attention output, on gate/up/down.
    qk_norm : bool
        RMS norm over each head of q and k, before the rotary embedding.
    sliding_window : int or None
        A query at position p sees positions p - sliding_window + 1 .. p.

    Raises
    ------
    UnsupportedModelError
        When a value is of the wrong type or out of range; names the field.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    attention_output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    sliding_window: int | None = None
    hidden_act: str = "silu"

    def __post_init__(self) -> None:
        _check_types(self)
        for name in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "max_position_embeddings",
        ):
            value = getattr(self, name)
            _require(0 < value < 2**31, f"config.{name}: expected 1..2**31-1, found {value}")
        _require(
            self.num_attention_heads % self.num_key_value_heads == 0,
            f"config.num_key_value_heads: {self.num_key_value_heads} does not divide "
            f"num_attention_heads {self.num_attention_heads}",
        )
        repeats = self.num_attention_heads // self.num_key_value_heads
        _require(
            repeats <= MAX_QUERY_HEADS_PER_KV_HEAD,
            f"config.num_attention_heads: {repeats} query heads share a key/value head, "
            f"at most {MAX_QUERY_HEADS_PER_KV_HEAD} can",
        )
        _require(self.head_dim % 2 == 0, f"config.head_dim: expected even, found {self.head_dim}")
        _require(self.rms_norm_eps > 0, f"config.rms_norm_eps: found {self.rms_norm_eps}")
        _require(self.rope_theta > 1, f"config.rope_theta: expected > 1, found {self.rope_theta}")
        _require(
            self.rope_scaling is None or isinstance(self.rope_scaling, RopeScaling),
            f"config.rope_scaling: expected an object or null, found {self.rope_scaling!r}",
        )
        _require(
            self.sliding_window is None or 0 < self.sliding_window < 2**31,
            f"config.sliding_window: expected 1..2**31-1, found {self.sliding_window}",
        )
        _require(
            self.hidden_act == "silu",
            f"config.hidden_act: expected 'silu', found {self.hidden_act!r}",
        )

    @property
    def q_dim(self) -> int:
        """Width of the concatenated query heads."""
        return self.num_attention_heads * self.head_dim

    @property
    def kv_dim(self) -> int:
        """Width of the concatenated key (or value) heads."""
        return self.num_key_value_heads * self.head_dim

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelConfig:
        """Inverse of `to_dict`; an unknown or missing key raises UnsupportedModelError."""
        data = dict(data)
        if isinstance(data.get("rope_scaling"), Mapping):
            data["rope_scaling"] = _from_dict(RopeScaling, data["rope_scaling"])
        return _from_dict(cls, data)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, one key a field."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, slots=True)
class TokenizerConfig:
    """What the tokenizer blob of a model is, and how its special tokens are used.

    Parameters
    ----------
    kind : str
        `tokenizers`: the blob is a `tokenizer.json`; `sentencepiece`: a model proto.
    eos_token_ids : tuple of int
        Every token that ends an answer (end of sequence, of turn, of message).
    add_bos_token, add_eos_token : bool
        Whether encoding adds them when the caller asks for special tokens.
    chat_template : str or None
        The model's own Jinja template.
    prefix_at_start_only : bool
        Of `sentencepiece` only: a model that puts a space before a text puts it before the
        whole text, and not also after each control token (Hugging Face's `legacy: false`).
    """

    kind: TokenizerKind
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    unk_token_id: int | None = None
    pad_token_id: int | None = None
    add_bos_token: bool = False
    add_eos_token: bool = False
    chat_template: str | None = None
    prefix_at_start_only: bool = False

    def __post_init__(self) -> None:
        _check_types(self)
        _require(
            self.kind in ("tokenizers", "sentencepiece"),
            f"tokenizer.kind: expected tokenizers or sentencepiece, found {self.kind!r}",
        )
        ids = self.eos_token_ids
        _require(
            isinstance(ids, tuple) and all(type(i) is int for i in ids),
            f"tokenizer.eos_token_ids: expected integers, found {ids!r}",
        )

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TokenizerConfig:
        """Inverse of `to_dict`; an unknown or missing key raises UnsupportedModelError."""
        data = dict(data)
        if isinstance(data.get("eos_token_ids"), list):
            data["eos_token_ids"] = tuple(data["eos_token_ids"])
        return _from_dict(cls, data)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, one key a field."""
        return dataclasses.asdict(self)
