"""Model names to ready `.qlm` files: where models come from and where they are kept."""
