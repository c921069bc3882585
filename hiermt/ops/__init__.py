"""The native operators, with the signatures of their twins in :mod:`hiermt.reference`.

Importing this module gives every operator of ``torch.ops.hiermt`` its fake (shape), autograd and autocast rules, so it
needs the compiled extension; :mod:`hiermt.functional` imports it only where that is there.
"""

from __future__ import annotations

from hiermt.native import extension as _extension
from hiermt.ops import gated_scan_rules as ops_gated_scan
from hiermt.ops import gated_scan_windows_rules as ops_gated_scan_windows
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
from hiermt.ops._graph_prepare import graph_prepare
from hiermt.ops._multitask_loss import multitask_loss
from hiermt.ops._tgcn_layer import tgcn_layer
from hiermt.ops.gated_scan_rules import gated_scan
from hiermt.ops.gated_scan_windows_rules import gated_scan_windows

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
    "gated_scan_windows",
    "graph_prepare",
    "head_logits",
    "multitask_loss",
    "tgcn_layer",
]

_status = _extension.native_status()
if not _status.available:
    raise RuntimeError(f"hiermt.ops needs the compiled extension: {_status.reason}. To fix: {_status.fix}.")
for _family in (ops_gated_scan, ops_gated_scan_windows):
    _family.register()
