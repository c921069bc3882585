"""Decisions of a trained model: for one batch, over a whole series, or day by day."""

from hiermt.inference.hierarchical import hierarchical_inference, inference_hierarchical, joint_probabilities
from hiermt.inference.live import LivePredictor
from hiermt.inference.rolling import predict_rolling

__all__ = [
    "LivePredictor",
    "hierarchical_inference",
    "inference_hierarchical",
    "joint_probabilities",
    "predict_rolling",
]
