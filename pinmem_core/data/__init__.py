"""Datasets: cards, downloads, archives, preparation, and training batches."""
