"""Leaving the house: the Hub, files for other runtimes, and the original's checkpoints."""
