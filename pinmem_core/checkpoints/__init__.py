"""Checkpoints: their format, their names, and the reading of files that others wrote."""
