"""Exporting and sharing models: the Hub, other runtimes, and the original's checkpoints."""
