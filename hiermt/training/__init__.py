"""Training: one loop for every model, resumable to the bit."""

from hiermt.training.loop import adam, train_hierarchical

__all__ = ["adam", "train_hierarchical"]
