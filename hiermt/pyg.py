"""The models on PyG's convolutions, :func:`like` a model of hiermt: for PyG's explainers, ONNX and other tools.

Importing this module needs ``torch_geometric``.
"""

from hiermt.testing.pyg import AttentionBackbone, Backbone, HierarchicalMT, MultiTask, like

__all__ = ["AttentionBackbone", "Backbone", "HierarchicalMT", "MultiTask", "like"]
