"""The Llama-family decoder: weights, key/value cache, compiled forward pass, engine."""
