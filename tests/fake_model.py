"""A model for tests: no weights, but it notices every wrong use of its KV cache."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

import numpy as np

from qllama.config import TokenizerConfig
from qllama.tokenizer.base import BaseTokenizer

BOS, EOS, USER, ASSISTANT = 256, 257, 258, 259
SPECIAL = {BOS: "<s>", EOS: "<|end|>", USER: "<|user|>", ASSISTANT: "<|assistant|>"}
VOCAB_SIZE = 260
# No text of ours has this byte.
LO = 0x80

CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


class ByteTokenizer(BaseTokenizer):
    """One token a byte, and four control tokens."""

    def __init__(self, *, adds_space=False, **config):
        config = {"bos_token_id": BOS, "eos_token_ids": (EOS,)} | config
        super().__init__(
            TokenizerConfig("tokenizers", **config),
            vocab_size=VOCAB_SIZE,
            adds_space=adds_space,
            adds_space_after_matched=adds_space,
            added=dict.fromkeys(SPECIAL, True),
        )

    def _encode_text(self, text, parse_special):
        ids = []
        while text:
            for token, spelled in SPECIAL.items() if parse_special else ():
                if text.startswith(spelled):
                    ids.append(token)
                    text = text[len(spelled) :]
                    break
            else:
                ids += text[0].encode()
                text = text[1:]
        return ids

    def _spelling(self, token_id):
        return SPECIAL.get(token_id, f"<{token_id:02x}>")

    def _decode_token(self, token_id, spelled):
        return bytes([token_id])


class MergingTokenizer(ByteTokenizer):
    """Encodes "lo" as one token; a model may also say it in two."""

    def _encode_text(self, text, parse_special):
        return super()._encode_text(text.replace("lo", "\0"), parse_special)

    def encode(self, text, **how):
        return [LO if token == 0 else token for token in super().encode(text, **how)]

    def _decode_token(self, token_id, spelled):
        return b"lo" if token_id == LO else super()._decode_token(token_id, spelled)


class FakeEngine:
    """Answers known prompts with known tokens, anything else with noise.

    Logits depend on every token that the slot holds, so reuse of a wrong prefix
    shows in the answer.

    Parameters
    ----------
    answers : mapping of prompt to answer
        Both str or token ids; after the answer comes EOS. Prompts are plain text.
    """

    def __init__(
        self,
        answers: Mapping[str | Sequence[int], str | Sequence[int]] = {},
        *,
        n_ctx: int = 64,
        n_batch: int = 4,
    ):
        self.n_ctx = n_ctx
        self.n_batch = n_batch
        self.held: list[int] = []
        self.evaluated: list[int] = []
        """How many tokens each call evaluated."""
        self.interrupt_after: int | None = None
        """Raise KeyboardInterrupt, once, after so many tokens."""
        self.adapter: bytes = b""
        self._busy = False
        self._next: dict[tuple[int, ...], int] = {}
        for prompt, answer in answers.items():
            tokens = token_ids(prompt)
            for token in [*token_ids(answer), EOS]:
                self._next[tuple(tokens)] = token
                tokens.append(token)

    def evaluate(self, tokens, *, position, slot=0, all_logits=False, on_progress=None, check=None):
        assert not self._busy, "two calls at once"
        assert tokens
        assert position <= len(self.held), "evaluates on top of tokens it does not hold"
        assert position + len(tokens) <= self.n_ctx
        assert all(type(token) is int for token in tokens)
        self._busy = True
        try:
            self.evaluated.append(0)
            self.held = self.held[:position]
            rows = []
            for start in range(0, len(tokens), self.n_batch):
                if check is not None:
                    check()
                for token in tokens[start : start + self.n_batch]:
                    self.held.append(token)
                    self.evaluated[-1] += 1
                    rows.append(self._logits())
                if self.interrupt_after is not None and start >= self.interrupt_after:
                    self.interrupt_after = None
                    self.held.append(-1)  # written, but never reported as valid
                    raise KeyboardInterrupt
                if on_progress is not None and start + self.n_batch < len(tokens):
                    on_progress(start + self.n_batch, len(tokens))
            return np.stack(rows if all_logits else rows[-1:])
        finally:
            self._busy = False

    def cache_bytes(self, n_positions):
        return 4 * n_positions

    def read_cache(self, n_positions, slot=0):
        assert n_positions <= len(self.held), "copies tokens that it does not hold"
        return np.array(self.held[:n_positions], np.int32)

    def write_cache(self, chunks, slot=0):
        self.held = chunks.tolist()

    def adapt(self, adapter):
        """Take a digest as an adapter; what is held would be of another model."""
        self.adapter = b"" if adapter is None else adapter.digest
        self.held = []

    def _logits(self):
        prefix = tuple(self.held)
        if prefix in self._next:
            logits = np.zeros(VOCAB_SIZE, np.float32)
            logits[self._next[prefix]] = 30
            return logits
        seed = zlib.crc32(np.array(prefix, np.int32).tobytes() + self.adapter)
        return np.random.default_rng(seed).normal(0, 3, VOCAB_SIZE).astype(np.float32)


def token_ids(text: str | Sequence[int]) -> list[int]:
    return list(text.encode()) if isinstance(text, str) else list(text)
