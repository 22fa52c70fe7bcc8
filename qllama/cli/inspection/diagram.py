"""Model facts as a Mermaid flowchart of the forward pass."""

from __future__ import annotations

from qllama.cli.inspection.facts import ModelFacts

__all__ = ["as_mermaid"]


def as_mermaid(facts: ModelFacts) -> str:
    """Return `facts` as Mermaid source: tokens at the top, logits at the bottom."""
    config = facts.config
    types = {part.name: " ".join(part.types) for part in facts.parts}
    hidden, vocab = config["hidden_size"], config["vocab_size"]
    head_type = types.get("head", f"{types.get('embeddings', '')}, tied")
    qk_norm = ", q/k norm" if config["qk_norm"] else ""
    attention = (
        f"{config['num_attention_heads']} query, {config['num_key_value_heads']} KV heads "
        f"of {config['head_dim']}{qk_norm}"
    )
    return f"""\
flowchart TD
    tokens([token ids]) --> embed["embed_tokens<br/>{vocab} x {hidden}, {types["embeddings"]}"]
    embed --> hidden
    subgraph block["decoder block, {config["num_hidden_layers"]} times"]
        hidden(["hidden state, {hidden}"]) --> input_norm["input_layernorm"]
        input_norm --> attention["self_attn, RoPE<br/>{attention}<br/>{types["attention"]}"]
        attention --> add_attention(("+"))
        hidden -. residual .-> add_attention
        add_attention --> post_norm["post_attention_layernorm"]
        post_norm --> mlp["mlp, SwiGLU<br/>{config["intermediate_size"]} wide<br/>{types["MLP"]}"]
        mlp --> add_mlp(("+"))
        add_attention -. residual .-> add_mlp
    end
    add_mlp --> norm["norm"]
    norm --> head["lm_head<br/>{hidden} to {vocab}, {head_type}"]
    head --> logits([logits])"""
