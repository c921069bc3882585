"""Inputs of a model for a batch, and when the windows of a batch share the work on their days."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from hiermt import windows as gather
from hiermt.native import dispatch
from hiermt.nn import A3TGCN, TGCN, MultiTaskTGCN, TGCN_HierarchicalMT
from hiermt.nn.headed import Headed
from hiermt.nn.parameters import runs
from hiermt.windows import Windows

# The forwards that take windows, of models with heads and of those without.
_HEADED = {TGCN_HierarchicalMT: TGCN_HierarchicalMT.forward, MultiTaskTGCN: MultiTaskTGCN.forward}
_BARE = {TGCN: TGCN.forward, A3TGCN: A3TGCN.forward}

# Sharing pays if the distinct days of a batch are at most this fraction of the days of its windows, overlaps counted;
# docs/benchmarks.md has the measurements.
MOST_DAYS = 0.5
# On a GPU, the fraction of the days that are computed. Estimated, not yet measured.
MOST_DAYS_ON_GPU = 0.65


def placed(model: nn.Module, device: torch.device | str | None) -> torch.device:
    """Moves `model` to `device`; with ``None`` it stays where it is. Returns the device, the CPU without parameters."""
    if device is not None:
        model.to(device)
        return torch.device(device)
    found = next(model.parameters(), next(model.buffers(), None))
    return torch.device("cpu") if found is None else found.device


def run_model(model: nn.Module, batch: Any, device: torch.device | str, share: bool | None = None) -> Any:
    """The output of `model` for `batch`; stocks that are absent by ``batch.present`` take no part.

    Raises:
        ValueError: as :func:`shared_inputs`.
        TypeError: the batch has ``present``, and the model does not take it.
    """
    inputs = shared_inputs(model, batch, device, share)
    present = None if isinstance(inputs[0], Windows) else getattr(batch, "present", None)
    if present is None:
        return model(*inputs)
    if not takes(model, "present"):
        raise TypeError(
            f"the batches say which stocks are present, which a {type(model).__name__} does not take; give its forward "
            "an argument present, or train on data without gaps"
        )
    if present.dim() > inputs[0].dim() - 1:  # the disjoint union of a model of another package
        present = present.flatten(0, 1)
    return model(*inputs, present=present.to(device))


def present_rows(batch: Any) -> Tensor | None:
    """Which rows are of stocks that are present on the last day, ``[N]`` or ``[B, S]``; ``None`` if all are."""
    windows = getattr(batch, "windows", None)
    if isinstance(windows, Windows):
        if windows.present is None:
            return None
        return windows.present.index_select(1, windows.starts + (windows.steps - 1)).t()
    present = getattr(batch, "present", None)
    return None if present is None else present[..., -1]


def takes(called: Any, name: str) -> bool:
    """Whether a model or another callable takes an argument of this name."""
    if isinstance(called, nn.parallel.DistributedDataParallel):
        called = called.module
    # A compiled module has the forward of any module.
    called = getattr(called, "_orig_mod", called)
    try:
        parameters = inspect.signature(getattr(called, "forward", called)).parameters.values()
    except (TypeError, ValueError):  # a callable that tells no arguments
        return True
    return any(one.name == name or one.kind is one.VAR_KEYWORD for one in parameters)


def shared_inputs(
    model: nn.Module, batch: Any, device: torch.device | str, share: bool | None = None
) -> tuple[Any, ...]:
    """The arguments of `model` for `batch`, with :class:`hiermt.Windows` in place of x if its days are shared.

    Args:
        share: ``True`` always, ``False`` never, ``None`` if it is possible and pays.

    Raises:
        ValueError: `share` is ``True``, but sharing is not possible; the message says why.
    """
    if share is False:
        return model_inputs(model, batch, device)
    if isinstance(getattr(batch, "windows", None), Windows):
        batch = batch.to(device)
    reason = why_not_shared(model, batch)
    if share and reason is not None:
        raise ValueError(f"share_days: {reason}; leave it at None to share only if that is possible and pays")
    if reason is not None or (share is None and not _pays(batch)):
        return model_inputs(model, batch, device)
    windows = batch.windows
    return (windows.within(batch.day_span) if gather.reading_syncs(windows.series) else windows), batch.graph


def model_inputs(model: nn.Module, data: Any, device: torch.device | str) -> tuple[Any, ...]:
    """``(x, edge_index, edge_weight)`` or ``(x, graph)`` of a batch, on `device`.

    A model without a part of this package gets the windows of a batch as the disjoint union that PyG builds.
    """
    graph = getattr(data, "graph", None)
    x = data.x.to(device)
    if graph is not None:
        graph = graph.to(device)
        if not isinstance(getattr(data, "windows", None), Windows):
            return x, graph
        layout = _layout(model)
        if layout is None:
            return x.flatten(0, 1), *graph.edges(x.size(0))
        return (x if layout == "NTF" else x.transpose(-1, -2)), graph
    edge_weight = getattr(data, "edge_weight", None)
    if edge_weight is None and getattr(data, "edge_attr", None) is not None:
        raise ValueError(
            "data has edge_attr but no edge_weight, so its weights would be ignored; rename it to edge_weight"
        )
    return x, data.edge_index.to(device), None if edge_weight is None else edge_weight.to(device)


def why_not_shared(model: nn.Module, batch: Any) -> str | None:
    """Why the windows of `batch` cannot share their days, ``None`` if they can."""
    windows = getattr(batch, "windows", None)
    if not isinstance(windows, Windows):
        return "the batches are not windows of one series, such as those of a hiermt.data.WindowLoader"
    backbone = _backbone(model)
    if backbone is None:
        return f"a {type(model).__name__} does not accept windows, or has a forward or a hook of its own that may not"
    if gather.reading_syncs(windows.series):
        if batch.day_span is None:
            return "on a GPU a WindowLoader must know which days its batches have; this one leaves out days in between"
        if not dispatch.native(backbone.backend, windows.series.device, windows.series.dtype):
            return "on a GPU only the native operators share days"
    return None


def _backbone(model: nn.Module) -> TGCN | None:
    if isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module
    if any(isinstance(model, kind) and runs(model, forward) for kind, forward in _HEADED.items()):
        model = model.tgcn_backbone  # type: ignore[assignment]
    takes = any(isinstance(model, kind) and runs(model, forward) for kind, forward in _BARE.items())
    return model if takes else None  # type: ignore[return-value]


def _layout(model: nn.Module) -> str | None:
    """Layout of x for a model that is or contains one of this package; ``None`` for any other model."""
    if isinstance(model, Headed):
        return model.layout
    return next((part.layout for part in model.modules() if isinstance(part, TGCN)), None)


def _pays(batch: Any) -> bool:
    windows = batch.windows
    if gather.reading_syncs(windows.series):
        return bool(batch.day_span.days <= MOST_DAYS_ON_GPU * windows.starts.numel() * windows.steps)
    return bool(windows.days().numel() <= MOST_DAYS * windows.starts.numel() * windows.steps)
