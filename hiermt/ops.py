"""The native operators, with the signatures of their twins in :mod:`hiermt.reference`.

Importing this module gives every operator of ``torch.ops.hiermt`` its fake (shape), autograd and autocast rules, so it
needs the compiled extension; :mod:`hiermt.functional` imports it only where that is there.
"""

from __future__ import annotations

from hiermt import (
    _extension,
    ops_decision,
    ops_gated_scan,
    ops_gated_scan_windows,
    ops_gatv2_conv,
    ops_gcn_conv,
    ops_graph,
    ops_multitask_loss,
    ops_tgcn_layer,
    ops_windows,
)
from hiermt.ops_decision import (
    ALL,
    CONFIDENCES,
    LOGITS,
    PREDICTIONS,
    PROBABILITIES,
    decision,
    decision_from_logits,
    head_logits,
)
from hiermt.ops_gated_scan import gated_scan
from hiermt.ops_gated_scan_windows import gated_scan_windows
from hiermt.ops_gatv2_conv import gatv2_conv
from hiermt.ops_gcn_conv import gcn_conv
from hiermt.ops_graph import graph_prepare
from hiermt.ops_multitask_loss import multitask_loss
from hiermt.ops_tgcn_layer import tgcn_layer
from hiermt.ops_windows import gather_windows

__all__ = [
    "ALL",
    "CONFIDENCES",
    "LOGITS",
    "PREDICTIONS",
    "PROBABILITIES",
    "decision",
    "decision_from_logits",
    "gated_scan",
    "gated_scan_windows",
    "gather_windows",
    "gatv2_conv",
    "gcn_conv",
    "graph_prepare",
    "head_logits",
    "multitask_loss",
    "tgcn_layer",
]

_status = _extension.native_status()
if not _status.available:
    raise RuntimeError(f"hiermt.ops needs the compiled extension: {_status.reason}. To fix: {_status.fix}.")
_FAMILIES = (
    ops_decision,
    ops_gated_scan,
    ops_gated_scan_windows,
    ops_gatv2_conv,
    ops_gcn_conv,
    ops_graph,
    ops_multitask_loss,
    ops_tgcn_layer,
    ops_windows,
)
for _family in _FAMILIES:
    _family.register()
