"""Checkpoint formats: one file a format, all behind `base.CheckpointSource`."""
