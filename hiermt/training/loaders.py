"""Requirements that a training has of its loaders: batches, several passes, labels, reproducible workers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils.data import ConcatDataset, DataLoader, StackDataset, Subset, TensorDataset, default_collate

from hiermt.data import PygDataset, WindowDataset
from hiermt.training.object_walk import is_iterator


def check_loader(name: str, loader: Any) -> None:
    """Rejects objects without batches, iterators that support one pass only, and windows without labels.

    Raises:
        TypeError: `loader` is not an iterable of batches, or supports only one pass.
        ValueError: its windows have no labels.
    """
    if isinstance(loader, Mapping) or not (hasattr(type(loader), "__iter__") or hasattr(type(loader), "__getitem__")):
        hint = "; call it" if callable(loader) else "; give a list of one batch" if hasattr(loader, "x") else ""
        if isinstance(loader, WindowDataset):
            hint = "; make a hiermt.data.WindowLoader of it"
        raise TypeError(f"{name}: expected an iterable of batches, got {type(loader).__name__}{hint}")
    if is_iterator(loader):
        raise TypeError(
            f"{name}: a {type(loader).__name__} is exhausted after one epoch; give a list of its batches, or an object "
            "whose __iter__ starts anew"
        )
    for holder in (loader, getattr(loader, "dataset", None)):
        if getattr(holder, "labelled", True) is False:
            raise ValueError(
                f"{name}: some of its windows end on a day without labels, so its batches have none; give the dataset "
                "labels, and the loader only windows that have one"
            )


def check_workers(name: str, loader: Any) -> None:
    """Rejects persistent workers that may draw random numbers: their state is in other processes.

    Raises:
        ValueError: `loader` has ``persistent_workers`` over a dataset that is not known to be deterministic.
    """
    if not _persistent(loader):
        return
    parts = {
        "dataset": _deterministic(loader.dataset),
        "collate_fn": loader.collate_fn is default_collate
        or type(loader.collate_fn).__module__.startswith("torch_geometric.loader"),
    }
    for part, deterministic in parts.items():
        if not deterministic:
            kind = type(getattr(loader, part)).__name__
            raise ValueError(
                f"{name}: its persistent workers may draw random numbers in its {part}, a {kind}, and the state of a "
                "worker cannot be stored with the checkpoint; use persistent_workers=False"
            )


def fresh_workers(loader: Any) -> bool:
    """Whether the next pass starts workers that an uninterrupted training would already have."""
    return _persistent(loader) and loader._iterator is None


def start_workers(loader: Any) -> None:
    """Starts them. Call it before the random state is restored: it draws random numbers."""
    iter(loader)


def _persistent(loader: Any) -> bool:
    return isinstance(loader, DataLoader) and loader.num_workers > 0 and loader.persistent_workers


def _deterministic(dataset: Any) -> bool:
    """Whether a dataset is known to return the same items in every pass."""
    if isinstance(dataset, list | tuple | range | torch.Tensor):
        return True
    if type(dataset) in (TensorDataset, PygDataset):
        return True
    if type(dataset) is Subset:
        return _deterministic(dataset.dataset)
    if type(dataset) is ConcatDataset:
        return all(map(_deterministic, dataset.datasets))
    if type(dataset) is StackDataset:
        parts = dataset.datasets
        return all(map(_deterministic, parts.values() if isinstance(parts, dict) else parts))
    # Datasets of PyG are deterministic unless the user adds a transform.
    return (
        type(dataset).__module__.startswith("torch_geometric.datasets") and getattr(dataset, "transform", None) is None
    )
