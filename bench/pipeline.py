"""The published second phase, end to end: a dataset of one file a window, a training epoch and a test pass."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import hiermt
from hiermt import data
from hiermt.testing import stock_graph

if TYPE_CHECKING:
    from cases import Case

BATCH, TEST_WINDOWS = 32, 119


class Files(torch.utils.data.Dataset[Any]):
    """PyG data of the windows from `first` on, each read from its file, as the published dataset does."""

    def __init__(self, folder: tempfile.TemporaryDirectory[str], first: int, count: int) -> None:
        self.folder = folder  # removed with the last dataset on it
        self.paths = [Path(folder.name) / f"timestep_{first + i}.pt" for i in range(count)]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        return torch.load(self.paths[index], weights_only=False)


def epoch(case: Case, competitor: str) -> Callable[[], Tensor]:
    """One epoch of ``case.copies`` windows, those of the test pass included.

    ``pyg`` is the published loop on PyG. ``native-files`` changes the import alone. ``native`` also has the windows in
    memory; they are read before the first epoch.
    """
    from torch_geometric.loader import DataLoader

    folder = tempfile.TemporaryDirectory()
    write(case, Path(folder.name))
    train = Files(folder, 0, case.copies - TEST_WINDOWS)
    test = Files(folder, len(train), TEST_WINDOWS)
    torch.manual_seed(0)
    loaders: list[Any] = [DataLoader(train, BATCH, shuffle=True), DataLoader(test, TEST_WINDOWS)]
    if competitor.startswith("pyg"):
        from hiermt.testing import pyg

        other = pyg.HierarchicalMT(case.features, case.hidden, case.layers, use_gat=case.use_gat)
        adam = torch.optim.Adam(other.parameters())
        return lambda: _published(other, adam, *loaders)
    backend = "native" if competitor.startswith("native") else "reference"
    sizes = case.features, case.hidden, case.layers, case.use_gat
    layout = "NFT" if competitor == "native-files" else "NTF"
    model = hiermt.TGCN_HierarchicalMT(*sizes, layout=layout, backend=backend)
    optimizer = torch.optim.Adam(model.parameters())
    if competitor != "native-files":
        loaders = [
            data.from_pyg_dataset(train, BATCH, shuffle=True, progress=False),
            data.from_pyg_dataset(test, TEST_WINDOWS, progress=False),
        ]

    def run() -> Tensor:
        losses, tests, _ = hiermt.train_hierarchical(model, optimizer, None, *loaders, num_epochs=1, progress=False)
        return torch.tensor([*losses, *tests])

    return run


def write(case: Case, folder: Path) -> None:
    """A file for each window of a random series: x ``[S, F, T]``, the edges, and both labels."""
    from torch_geometric.data import Data

    generator = torch.Generator().manual_seed(0)
    series = torch.randn(case.nodes, case.features, case.copies + case.steps - 1, generator=generator)
    signal, coin = torch.randint(2, (2, case.copies, case.nodes), generator=generator)
    edge_index, edge_weight = stock_graph(case.nodes, case.edges)
    for i in range(case.copies):
        window = series[:, :, i : i + case.steps].clone()
        labels = {"signal_labels": signal[i].clone(), "direction_labels": signal[i] * coin[i]}
        item = Data(x=window, edge_index=edge_index, edge_weight=edge_weight, **labels)
        torch.save(item, folder / f"timestep_{i}.pt")


def _published(model: nn.Module, optimizer: torch.optim.Optimizer, train: Iterable[Any], test: Iterable[Any]) -> Tensor:
    """The published loop: losses are read from the device at each step."""
    each = nn.CrossEntropyLoss(reduction="none")
    losses = []

    def loss_of(batch: Any) -> Tensor:
        x = batch.x.transpose(1, 2)  # the oracle reads [N, T, F], the published modules [N, F, T]
        signal_logits, direction_logits = model(x, batch.edge_index, batch.edge_weight)
        signal, direction = batch.signal_labels.squeeze(), batch.direction_labels.squeeze()
        mask = signal == 1
        signal_loss = each(signal_logits, signal).mean()
        direction_loss = each(direction_logits[mask], direction[mask]).mean()
        total: Tensor = signal_loss + direction_loss
        losses.append((signal_loss.item(), direction_loss.item(), total.item()))
        return total

    model.train()
    for batch in train:
        loss = loss_of(batch)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        loss.item()
    model.eval()
    with torch.no_grad():
        for batch in test:
            loss_of(batch)
    return torch.tensor(losses)
