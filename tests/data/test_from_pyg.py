"""Windows of a PyG dataset as one series: equal batches, and what is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

import hiermt
from hiermt import data
from hiermt.testing import stock_graph

pyg = pytest.importorskip("torch_geometric.data")
loaders = pytest.importorskip("torch_geometric.loader")

STOCKS, DAYS, FEATURES, WINDOW = 9, 40, 5, 7


def made(seed: int = 0, *shape: int) -> torch.Tensor:
    return torch.randn(*(shape or (STOCKS, DAYS, FEATURES)), generator=torch.Generator().manual_seed(seed))


def items(stride: int = 1, layout: str = "NFT", graphs: int = 1, **fields: Any) -> list[Any]:
    """What a published dataset holds: a Data a window, in the order of time."""
    series, found = made(), []
    edges = [stock_graph(STOCKS, 12, 1, seed) for seed in range(graphs)]
    for i, start in enumerate(range(0, DAYS - WINDOW + 1, stride)):
        x = series[:, start : start + WINDOW]
        edge_index, edge_weight = edges[i * graphs // 40]
        item = pyg.Data(
            x=x if layout == "NTF" else x.transpose(1, 2).contiguous(), edge_index=edge_index, edge_weight=edge_weight
        )
        item.signal_labels = torch.randint(2, (STOCKS, 1), generator=torch.Generator().manual_seed(start))
        item.direction_labels = torch.randint(2, (STOCKS, 1), generator=torch.Generator().manual_seed(99 + start))
        for name, value in fields.items():
            item[name] = value(start)
        found.append(item)
    return found


class Files(pyg.Dataset):
    """One file a window, as the published datasets are stored."""

    def __init__(self, root: Path, windows: list[Any]) -> None:
        super().__init__()
        self.folder, self.size = root, len(windows)
        for i, item in enumerate(windows):
            torch.save(item, root / f"{i}.pt")

    def len(self) -> int:
        return self.size

    def get(self, index: int) -> Any:
        return torch.load(self.folder / f"{index}.pt", weights_only=False)


@pytest.mark.parametrize("stride", [1, 3, 7])
@pytest.mark.parametrize("layout", ["NFT", "NTF"])
@pytest.mark.parametrize("graphs", [1, 3])
def test_the_batches_are_those_of_pyg(stride: int, layout: str, graphs: int) -> None:
    windows = items(
        stride, layout, graphs, y=lambda start: made(start, STOCKS, 4), kind=lambda start: torch.ones(STOCKS)
    )
    loader = data.from_pyg_dataset(windows, 4, layout=layout, stride=stride, progress=False)
    assert loader.dataset.num_days == (len(windows) - 1) * stride + WINDOW
    model = hiermt.TGCN_HierarchicalMT(FEATURES, 6)
    seen = 0
    for batch in loader:
        size = batch.starts.numel()
        theirs = next(iter(loaders.DataLoader(windows[seen : seen + size], batch_size=size)))
        x = theirs.x if layout == "NTF" else theirs.x.transpose(1, 2)
        assert torch.equal(batch.x.flatten(0, 1), x)
        for name in ("signal_labels", "direction_labels"):
            assert torch.equal(getattr(batch, name).reshape(-1), theirs[name].reshape(-1))
        assert torch.equal(batch.y.flatten(0, 1), theirs.y) and torch.equal(batch.kind.flatten(), theirs.kind)
        found = model(batch.x, batch.graph)[0].flatten(0, 1)
        torch.testing.assert_close(found, model(x, theirs.edge_index, theirs.edge_weight)[0])
        seen += size
    assert seen == len(windows)


def test_files_are_read_once(tmp_path: Path) -> None:
    files = Files(tmp_path, items())
    loader = data.from_pyg_dataset(files, 8, shuffle=True, seed=3, progress=False)
    for path in tmp_path.iterdir():
        path.unlink()
    assert sum(batch.starts.numel() for batch in loader) == len(files)
    model = hiermt.TGCN_HierarchicalMT(FEATURES, 6)
    losses, *_ = hiermt.train_hierarchical(
        model, torch.optim.Adam(model.parameters()), None, loader, None, 2, progress=False
    )
    assert len(losses) == 2


def test_a_generator_and_chosen_targets() -> None:
    windows = items(y=lambda start: torch.zeros(STOCKS))
    loader = data.from_pyg_dataset(iter(windows), targets=["y"], progress=False, feature_names=list("abcde"))
    batch = next(iter(loader))
    assert batch.signal_labels is None and batch.y.shape == (32, STOCKS) and batch.feature_names == tuple("abcde")


def changed(index: int, **fields: Any) -> list[Any]:
    windows = [copy.copy(item) for item in items()]
    for name, value in fields.items():
        windows[index][name] = value
    return windows


@pytest.mark.parametrize(
    ("windows", "options", "error", "message"),
    [
        ([], {}, data.DataError, "dataset: has no windows"),
        (3, {}, TypeError, "dataset: expected a sequence of Data, got int"),
        ([torch.zeros(3)], {}, TypeError, "window 0: expected a Data with x and edge_index, got Tensor"),
        (items()[::-1], {}, data.DataError, "window 1: is not the window before, moved by 1 of 7 days"),
        (items()[:5] + items()[9:], {}, data.DataError, "window 5: is not the window before"),
        (items(), {"stride": 2}, data.DataError, "window 1: is not the window before, moved by 2"),
        (items(), {"stride": 8}, ValueError, "stride: expected at most the length of a window, 7, got 8"),
        (items(), {"stride": 0}, ValueError, "stride"),
        (items(), {"layout": "TNF"}, ValueError, "layout: expected 'NTF' or 'NFT'"),
        (items(), {"layout": "NTF"}, data.DataError, "try layout='NFT'"),
        (changed(6, x=made(5, STOCKS, FEATURES, WINDOW)), {}, data.DataError, "window 6: is not the window before"),
        (
            changed(6, x=made(5, STOCKS, FEATURES, 3)),
            {},
            data.DataError,
            "window 6: expected x like that of the windows",
        ),
        (
            changed(6, x=torch.zeros(STOCKS, 5)),
            {},
            data.DataError,
            r"window 6: expected x of \[S, F, T\], got \[9, 5\]",
        ),
        (changed(4, signal_labels=torch.zeros(3)), {}, data.DataError, "window 4: expected signal_labels with one row"),
        (
            changed(4, signal_labels=torch.zeros(STOCKS)),
            {},
            data.DataError,
            "window 4: expected signal_labels like that",
        ),
        (
            items(),
            {"targets": ["y"]},
            data.DataError,
            "window 0: expected y with one row for each of 9 nodes, got NoneType",
        ),
        (
            changed(0, edge_weight=None, edge_attr=torch.ones(12)),
            {},
            ValueError,
            "window 0: has edge_attr but no edge_weight",
        ),
    ],
)
def test_what_is_refused(windows: Any, options: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        data.from_pyg_dataset(windows, progress=False, **options)
