"""A training cut in two, beside the same training in one piece."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hiermt import TGCN_HierarchicalMT, data, train_hierarchical
from hiermt.testing import stock_graph

STOCKS, DAYS, FEATURES, WINDOW = 5, 30, 3, 4


def dataset() -> data.WindowDataset:
    generator = torch.Generator().manual_seed(0)
    series = torch.randn(STOCKS, DAYS, FEATURES, generator=generator)
    labels = [torch.randint(2, (STOCKS, DAYS), generator=generator) for _ in range(2)]
    return data.WindowDataset(series, *stock_graph(STOCKS, 6, 1), WINDOW, *labels)


@dataclass
class Parts:
    """All that a training is given, made anew."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    train: Any
    test: Any = None
    options: dict[str, Any] = field(default_factory=dict)

    def run(self, epochs: int, **options: Any) -> Any:
        return train_hierarchical(
            self.model,
            self.optimizer,
            self.options.get("criterion"),
            self.train,
            self.test,
            epochs,
            progress=False,
            **{name: value for name, value in self.options.items() if name != "criterion"},
            **options,
        )


def parts(
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] | None = None,
    scheduler: Callable[[torch.optim.Optimizer], Any] | None = None,
    model: Callable[[], nn.Module] | None = None,
    train: Callable[[], Any] | None = None,
    test: Callable[[], Any] | None = None,
    callback: Callable[[Parts], Any] | None = None,
    **options: Any,
) -> Parts:
    """Default parts, those given in their place."""
    whole = dataset()
    network = TGCN_HierarchicalMT(FEATURES, 4, 1) if model is None else model()
    made = Parts(
        network,
        torch.optim.Adam(network.parameters(), lr=1e-2) if optimizer is None else optimizer(network),
        data.WindowLoader(whole, range(16), 8, shuffle=True, seed=3) if train is None else train(),
        data.WindowLoader(whole, range(18, 24), 8) if test is None else test(),
        options,
    )
    if scheduler is not None:
        made.options["scheduler"] = scheduler(made.optimizer)
    if callback is not None:
        made.options["callback"] = callback(made)
    return made


def seed(value: int) -> None:
    torch.manual_seed(value)
    np.random.seed(value)  # noqa: NPY002
    random.seed(value)


def global_random() -> dict[str, Any]:
    legacy = np.random.get_state(legacy=False)  # noqa: NPY002
    return {"torch": torch.get_rng_state(), "numpy": legacy, "random": random.getstate()}


def assert_equal(one: Any, other: Any, path: str = "state") -> None:
    """Bitwise, with types, in whatever is nested."""
    if isinstance(one, np.generic):
        one = one.item()
    if isinstance(other, np.generic):
        other = other.item()
    assert type(one) is type(other), path
    if isinstance(one, Tensor):
        assert one.dtype == other.dtype and torch.equal(one.nan_to_num(1e30), other.nan_to_num(1e30)), path
    elif isinstance(one, np.ndarray):
        assert np.array_equal(one, other), path
    elif isinstance(one, dict):
        assert list(one) == list(other), path
        for key in one:
            assert_equal(one[key], other[key], f"{path}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), path
        for i, (each, its) in enumerate(zip(one, other, strict=True)):
            assert_equal(each, its, f"{path}[{i}]")
    else:
        assert one == other or one != one, path


def assert_goes_on(make: Callable[[], Parts], folder: Path, *, epochs: int = 4, cuts: tuple[int, ...] = (2,)) -> Parts:
    """A training of `epochs` equals one that is cut after each of `cuts`, each piece by parts made anew."""
    seed(0)
    whole = make()
    seed(1)
    expected = whole.run(epochs)
    expected_random = global_random()
    path = folder / "state.pt"
    seed(0)
    first = make()
    seed(1)
    first.run(cuts[0], checkpoint=path)
    for piece, until in enumerate((*cuts[1:], epochs)):
        seed(0)
        again = make()
        seed(50 + piece)
        with torch.no_grad():  # other weights: those of the file count
            for parameter in again.model.parameters():
                parameter.add_(1)
        found = again.run(until, checkpoint=path, resume=True)
    random_state = global_random()
    assert_equal(found, expected, "losses")
    assert_equal(again.model.state_dict(), whole.model.state_dict(), "model")
    assert_equal(again.optimizer.state_dict(), whole.optimizer.state_dict(), "optimizer")
    assert_equal(random_state, expected_random, "random")
    return again


class Heads(nn.Module):
    """Two matrices, which any optimiser takes."""

    def __init__(self, dtype: torch.dtype = torch.float32, dropout: float = 0.0) -> None:
        super().__init__()
        self.hidden = nn.Linear(FEATURES * WINDOW, 6, bias=False, dtype=dtype)
        self.heads = nn.Linear(6, 4, bias=False, dtype=dtype)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, *edges: Any) -> tuple[Tensor, Tensor]:
        signal, direction = self.heads(self.dropout(self.hidden(x.flatten(-2)).tanh())).split(2, -1)
        return signal, direction


class Batch:
    """What the loop reads of a batch."""

    def __init__(self, seed: int, dtype: torch.dtype = torch.float32) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn(STOCKS, WINDOW, FEATURES, generator=generator, dtype=dtype)
        self.edge_index, self.edge_weight = stock_graph(STOCKS, 6, 1)
        self.signal_labels, self.direction_labels = torch.randint(2, (2, STOCKS), generator=generator)

    def to(self, device: Any) -> Batch:
        return self


def batches(dtype: torch.dtype = torch.float32) -> list[Batch]:
    return [Batch(i, dtype) for i in range(3)]
