"""What a model is given for a batch, and when the windows of a batch share the work on their days."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from hiermt.gather import Windows
from hiermt.nn import TGCN, TGCN_HierarchicalMT

# Sharing pays where a batch has at most so many different days to a day of its windows, with attention and with GCN.
# bench/NOTES.md has the measurements: sharing is as fast as copying at 0.6 to 0.66 and at 0.5.
MOST_DAYS = {True: 0.5, False: 0.4}


def shared_inputs(
    model: nn.Module, batch: Any, device: torch.device | str, share: bool | None = None
) -> tuple[Any, ...]:
    """The arguments of `model` for `batch`, with :class:`hiermt.Windows` in place of x where its days are shared.

    Args:
        share: ``True`` wherever it is possible at all, ``False`` never, ``None`` where it pays.

    Raises:
        ValueError: sharing was asked for, and is not possible; the message says why.
    """
    if share is False:
        return model_inputs(batch, device)
    reason = why_not_shared(model, batch, device)
    if share and reason is not None:
        raise ValueError(f"share_days: {reason}; leave it at None to share only where that is possible and pays")
    if reason is not None or (share is None and not _pays(model, batch.windows)):
        return model_inputs(batch, device)
    return batch.windows, batch.graph


def model_inputs(data: Any, device: torch.device | str) -> tuple[Any, ...]:
    """``(x, edge_index, edge_weight)`` or ``(x, graph)`` of a batch, on `device`."""
    graph = getattr(data, "graph", None)
    x = data.x.to(device)
    if graph is not None:
        return x, graph.to(device)
    edge_weight = getattr(data, "edge_weight", None)
    if edge_weight is None and getattr(data, "edge_attr", None) is not None:
        raise ValueError(
            "data has edge_attr but no edge_weight, so its weights would be ignored; rename it to edge_weight"
        )
    return x, data.edge_index.to(device), None if edge_weight is None else edge_weight.to(device)


def why_not_shared(model: nn.Module, batch: Any, device: torch.device | str) -> str | None:
    """Why the windows of `batch` cannot share their days, ``None`` if they can."""
    windows = getattr(batch, "windows", None)
    if not isinstance(windows, Windows):
        return "the batches are no windows of one series, as those of a hiermt.data.WindowLoader are"
    backbone = _backbone(model)
    if backbone is None:
        return f"a {type(model).__name__} takes no windows"
    if backbone.layout != "NTF":
        return f"the model has layout='{backbone.layout}'"
    if windows.series.is_cuda or torch.device(device).type == "cuda":
        return "the kernels of a GPU do not share days"
    return None


def _backbone(model: nn.Module) -> TGCN | None:
    if isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module
    if isinstance(model, TGCN_HierarchicalMT):
        return model.tgcn_backbone
    return model if isinstance(model, TGCN) else None


def _pays(model: nn.Module, windows: Windows) -> bool:
    backbone = _backbone(model)
    most = MOST_DAYS[backbone is None or backbone.config["use_gat"]]
    return windows.days().numel() <= most * windows.starts.numel() * windows.steps
