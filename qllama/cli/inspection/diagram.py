"""Model facts as a Mermaid flowchart of the forward pass."""

from __future__ import annotations

from qllama.cli.inspection.facts import PARTS, ModelFacts, PartFacts
from qllama.cli.inspection.tables import human_count

__all__ = ["as_mermaid"]


def as_mermaid(facts: ModelFacts) -> str:
    """Return `facts` as Mermaid source: tokens at the top, logits at the bottom."""
    config = facts.config
    hidden, vocab = f"{config['hidden_size']:,}", f"{config['vocab_size']:,}"
    size = dict.fromkeys(PARTS, "missing") | {part.name: _size(part) for part in facts.parts}
    embed = f"{vocab} x {hidden}<br/>{size['embeddings']}"
    mlp = f"{config['intermediate_size']:,} wide<br/>{size['MLP']}"
    head = f"{size['embeddings']}, tied" if config["tie_word_embeddings"] else size["head"]
    attention = (
        f"{config['num_attention_heads']} query, {config['num_key_value_heads']} KV heads "
        f"of {config['head_dim']}{', q/k norm' * config['qk_norm']}"
    )
    return f"""\
flowchart TD
    tokens([token ids]) --> embed["embed_tokens<br/>{embed}"]
    embed --> hidden
    subgraph block["decoder block, {config["num_hidden_layers"]} times"]
        hidden(["hidden state, {hidden}"]) --> input_norm["input_layernorm"]
        input_norm --> attention["self_attn, RoPE<br/>{attention}<br/>{size["attention"]}"]
        attention --> add_attention(("+"))
        hidden -. residual .-> add_attention
        add_attention --> post_norm["post_attention_layernorm"]
        post_norm --> mlp["mlp, SwiGLU<br/>{mlp}"]
        mlp --> add_mlp(("+"))
        add_attention -. residual .-> add_mlp
    end
    add_mlp --> norm["norm"]
    norm --> head["lm_head<br/>{hidden} to {vocab}<br/>{head}"]
    head --> logits([logits])"""


def _size(part: PartFacts) -> str:
    """Weights of a part, in one layer where it is in layers, and their types."""
    return f"{human_count(part.parameters_per_layer or part.parameters)} {' '.join(part.types)}"
