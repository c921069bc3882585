"""The model's operations as functions: arguments checked, backend chosen, nothing stored.

Every function takes ``x`` as ``[N, T, F]`` with any strides, a :class:`hiermt.Graph`, parameters with the shapes
PyG gives them, and ``backend="auto" | "native" | "reference"``.
"""

from hiermt.functional.convolution import conv_stack, gatv2_conv, gcn_conv
from hiermt.functional.heads import decision, decision_from_logits, heads
from hiermt.functional.layer import tgcn_layer
from hiermt.functional.loss import multitask_loss
from hiermt.functional.options import ACTIVATIONS, LayerOptions
from hiermt.functional.scan import gated_scan, gated_scan_windows
from hiermt.windows import gather_windows

__all__ = [
    "ACTIVATIONS",
    "LayerOptions",
    "conv_stack",
    "decision",
    "decision_from_logits",
    "gated_scan",
    "gated_scan_windows",
    "gather_windows",
    "gatv2_conv",
    "gcn_conv",
    "heads",
    "multitask_loss",
    "tgcn_layer",
]
