"""T-GCN with graph attention and hierarchical decisions, fast on CPUs and GPUs.

``import hiermt`` never fails for want of the compiled extension: without it the pure-PyTorch twin computes the same.
"""

import hiermt._interrupts  # noqa: F401, before torch is imported
from hiermt import data, functional, reference
from hiermt._version import __version__
from hiermt.graph import DynamicGraph, Graph
from hiermt.inference import hierarchical_inference, inference_hierarchical, joint_probabilities
from hiermt.inference.live import LivePredictor
from hiermt.inference.rolling import predict_rolling
from hiermt.io.interop import from_reference
from hiermt.native.memory import release_memory
from hiermt.nn import A3TGCN, GAT, GCN, TGCN, MultiTaskTGCN, TGCN_HierarchicalMT, TGCNCell
from hiermt.nn.loss import MultiTaskLoss
from hiermt.training import evaluate, predict, tasks, train, train_hierarchical
from hiermt.windows import Windows

__all__ = [
    "A3TGCN",
    "GAT",
    "GCN",
    "TGCN",
    "DynamicGraph",
    "Graph",
    "LivePredictor",
    "MultiTaskLoss",
    "MultiTaskTGCN",
    "TGCNCell",
    "TGCN_HierarchicalMT",
    "Windows",
    "__version__",
    "data",
    "evaluate",
    "from_reference",
    "functional",
    "hierarchical_inference",
    "inference_hierarchical",
    "joint_probabilities",
    "predict",
    "predict_rolling",
    "reference",
    "release_memory",
    "tasks",
    "train",
    "train_hierarchical",
]
