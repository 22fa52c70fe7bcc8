"""Control tokens that end a turn, known by how they are spelled."""

from __future__ import annotations

__all__ = ["END_OF_TURN"]

# As llama.cpp finds them (`special_eog_ids` in `src/llama-vocab.cpp`): checkpoints often
# name only one of the tokens that their chat format ends a turn with.
END_OF_TURN = (
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<EOT>",
    "<｜end▁of▁sentence｜>",
    "</s>",
)
