"""Generation: sampling, stopping, the loop and the reuse of evaluated tokens."""
