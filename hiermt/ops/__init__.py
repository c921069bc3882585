"""The native operators, with the signatures of their twins in :mod:`hiermt.reference`.

A module beside this one has the name of its operator, with an underscore. Importing it gives the operator its fake
(shape), autograd, autocast and vmap rules, so it needs the compiled extension; :mod:`hiermt.functional` imports this
package only where that is there.
"""

from __future__ import annotations

from hiermt.ops._conv_stack import conv_stack
from hiermt.ops._decision import (
    ALL,
    CONFIDENCES,
    LOGITS,
    PREDICTIONS,
    PROBABILITIES,
    decision,
    decision_from_logits,
    head_logits,
)
from hiermt.ops._gated_scan import gated_scan
from hiermt.ops._graph_prepare import graph_prepare
from hiermt.ops._multitask_loss import multitask_loss
from hiermt.ops._tgcn_layer import tgcn_layer
from hiermt.ops._tgcn_layer_decision import tgcn_layer_decision, tgcn_layer_logits

__all__ = [
    "ALL",
    "CONFIDENCES",
    "LOGITS",
    "PREDICTIONS",
    "PROBABILITIES",
    "conv_stack",
    "decision",
    "decision_from_logits",
    "gated_scan",
    "graph_prepare",
    "head_logits",
    "multitask_loss",
    "tgcn_layer",
    "tgcn_layer_decision",
    "tgcn_layer_logits",
]
