"""T-GCN with graph attention and hierarchical decisions, fast on CPUs and GPUs.

``import hiermt`` never fails for want of the compiled extension: without it the pure-PyTorch twin computes the same.
"""

from hiermt import data, functional, reference
from hiermt._version import __version__
from hiermt.conv import GAT, GCN
from hiermt.dynamic import DynamicGraph
from hiermt.gather import Windows
from hiermt.graph import Graph
from hiermt.inference import hierarchical_inference, inference_hierarchical
from hiermt.interop import from_reference
from hiermt.loss import MultiTaskLoss
from hiermt.memory import release_memory
from hiermt.nn import TGCN, TGCN_HierarchicalMT, TGCNCell
from hiermt.rolling import LivePredictor, predict_rolling
from hiermt.training import train_hierarchical

__all__ = [
    "GAT",
    "GCN",
    "TGCN",
    "DynamicGraph",
    "Graph",
    "LivePredictor",
    "MultiTaskLoss",
    "TGCNCell",
    "TGCN_HierarchicalMT",
    "Windows",
    "__version__",
    "data",
    "from_reference",
    "functional",
    "hierarchical_inference",
    "inference_hierarchical",
    "predict_rolling",
    "reference",
    "release_memory",
    "train_hierarchical",
]
