"""Find the attention head that an answer hangs on: python examples/activation_tracing.py model.qlm

Silences one head after the other and tells whose loss costs the answer most, where that
head looks, and after which layer the model would have given the answer.
"""

from __future__ import annotations

import sys

import numpy as np

from qllama import Llama

PROMPT, ANSWER = "The capital of France is", " Paris"
LAYERS = range(20, 26)


def main(model_path: str) -> None:
    """Print the heads that matter, what the worst loss looks at, and the logit lens."""
    with Llama(model_path, n_ctx=512) as llm:
        (answer,) = llm.tokenize(ANSWER)

        def log_probability(hooks=None):
            logits = llm.trace(PROMPT, "logits", hooks=hooks)["logits"][-1]
            return logits[answer] - np.logaddexp.reduce(logits)

        ordinary = log_probability()
        losses = {}
        for layer in LAYERS:
            for head in range(llm.config.num_attention_heads):

                def silence(values, at, head=head):
                    values[:, head] = 0

                hooks = {f"layers.{layer}.self_attn.o_proj.input": silence}
                losses[layer, head] = ordinary - log_probability(hooks)
        worst = sorted(losses, key=losses.__getitem__, reverse=True)[:3]
        for layer, head in worst:
            print(f"without head {head} of layer {layer}: {-losses[layer, head]:+.2f}")

        layer, head = worst[0]
        with llm.trace(PROMPT, [f"layers.{layer}.self_attn.weights", "layers.*.output"]) as trace:
            weights = trace[f"layers.{layer}.self_attn.weights"][head, -1]
            place = int(weights.argmax())
            print(f"it looks at {trace.tokens[place]!r} ({weights[place]:.2f})")
            print(trace.logit_lens(k=3))


if __name__ == "__main__":
    main(sys.argv[1])
