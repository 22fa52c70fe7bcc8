"""Looking inside a model: activations by name, hooks that change them, the logit lens."""
