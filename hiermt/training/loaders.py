"""DataLoaders whose worker processes live on from one epoch to the next, in a training that can be resumed."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import ConcatDataset, DataLoader, StackDataset, Subset, TensorDataset, default_collate

from hiermt.data.window_loader import PygDataset


def check_workers(name: str, loader: Any) -> None:
    """Refuses workers that live on and may draw random numbers: their state is in other processes.

    Raises:
        ValueError: `loader` has ``persistent_workers`` over a dataset that is not known to draw none.
    """
    if not _persistent(loader):
        return
    for what, plain in (("dataset", _plain(loader.dataset)), ("collate_fn", _plain_collate(loader.collate_fn))):
        if not plain:
            kind = type(getattr(loader, what)).__name__
            raise ValueError(
                f"{name}: its persistent workers may draw random numbers in its {what}, a {kind}, and the state of a "
                "worker cannot be stored with the checkpoint; use persistent_workers=False"
            )


def fresh_workers(loader: Any) -> bool:
    """Whether the next pass starts workers that an uninterrupted training would already have."""
    return _persistent(loader) and loader._iterator is None


def start_workers(loader: Any) -> None:
    """Starts them now. It takes random numbers, so it comes before the random state is put back."""
    iter(loader)


def _persistent(loader: Any) -> bool:
    return isinstance(loader, DataLoader) and loader.num_workers > 0 and loader.persistent_workers


def _plain(dataset: Any) -> bool:
    """Whether it is known to give the same items whenever it is asked."""
    if isinstance(dataset, list | tuple | range | torch.Tensor):
        return True
    if type(dataset) in (TensorDataset, PygDataset):
        return True
    if type(dataset) is Subset:
        return _plain(dataset.dataset)
    if type(dataset) is ConcatDataset:
        return all(map(_plain, dataset.datasets))
    if type(dataset) is StackDataset:
        parts = dataset.datasets
        return all(map(_plain, parts.values() if isinstance(parts, dict) else parts))
    # PyG's own, without a transform of the user's.
    return (
        type(dataset).__module__.startswith("torch_geometric.datasets") and getattr(dataset, "transform", None) is None
    )


def _plain_collate(collate: Any) -> bool:
    return collate is default_collate or type(collate).__module__.startswith("torch_geometric.loader")
