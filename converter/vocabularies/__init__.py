"""Vocabularies of checkpoints, one format a module, as the blob that a `.qlm` carries."""
