"""Two processes with one training state: the first writes, both resume, and a failure reaches both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from hiermt import MultiTaskLoss, TGCN_HierarchicalMT, data, train_hierarchical
from hiermt.testing import stock_graph
from support.processes import two_processes

STOCKS, DAYS, FEATURES, WINDOW = 6, 40, 3, 5
pytestmark = pytest.mark.skipif(not distributed.is_available(), reason="torch without distributed")


def dataset() -> data.WindowDataset:
    generator = torch.Generator().manual_seed(0)
    series = torch.randn(STOCKS, DAYS, FEATURES, generator=generator, dtype=torch.float64)
    labels = [torch.randint(2, (STOCKS, DAYS), generator=generator) for _ in range(2)]
    edge_index, edge_weight = stock_graph(STOCKS, 8, 1)
    return data.WindowDataset(series, edge_index, edge_weight.double(), WINDOW, *labels)


def parts(rank: int, seed: int = 0) -> tuple[Any, ...]:
    """Model, optimiser and loader of a process; each shuffles windows of its own in an order of its own."""
    torch.manual_seed(seed)
    model = TGCN_HierarchicalMT(FEATURES, 4).double()
    loader = data.WindowLoader(dataset(), range(16 * rank, 16 * rank + 16), 8, shuffle=True, seed=seed + rank)
    test = data.WindowLoader(dataset(), range(32 + rank, 35), 8)
    return DistributedDataParallel(model), torch.optim.Adam(model.parameters(), lr=1e-2), loader, test


def train(made: tuple[Any, ...], epochs: int, **options: Any) -> Any:
    model, optimizer, loader, test = made
    criterion = MultiTaskLoss(process_group=distributed.group.WORLD)
    return train_hierarchical(model, optimizer, criterion, loader, test, epochs, progress=False, **options)


def goes_on(rank: int, folder: Path) -> dict[str, Any]:
    """Five epochs at once, and two that are resumed by processes with other weights and orders."""
    whole = parts(rank)
    expected = train(whole, 5, patience=4)
    path = folder / "state.pt"
    train(parts(rank), 2, checkpoint=path, patience=4)
    again = parts(rank, seed=9)
    found = train(again, 5, checkpoint=path, resume=True, patience=4)
    pairs = zip(whole[0].state_dict().values(), again[0].state_dict().values(), strict=True)
    return {"same": found == expected and all(torch.equal(one, other) for one, other in pairs), "losses": found[0]}


def writes(rank: int, folder: Path) -> dict[str, Any]:
    """Each process is told a file of its own."""
    train(parts(rank), 1, checkpoint=folder / f"state{rank}.pt")
    return {"there": [(folder / f"state{other}.pt").is_file() for other in range(2)]}


def fails(rank: int, **options: Any) -> str:
    try:
        train(parts(rank), 1, **options)
    except (OSError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def worker(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    found = {
        **goes_on(rank, folder),
        **writes(rank, folder),
        "disk": fails(rank, checkpoint=folder / "file" / "state.pt"),
        "unseen": fails(rank, checkpoint=folder / ("seen" if rank == 0 else "unseen"), resume=True),
        "alone": fails(rank, checkpoint=folder / "alone.pt", resume=True),
    }
    torch.save(found, folder / f"result{rank}")
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What both processes found."""
    folder = tmp_path_factory.mktemp("processes")
    (folder / "file").touch()
    (folder / "seen").touch()
    model = TGCN_HierarchicalMT(FEATURES, 4).double()
    loader = data.WindowLoader(dataset(), range(8), 8)
    optimizer = torch.optim.Adam(model.parameters())
    train_hierarchical(model, optimizer, None, loader, loader, 1, progress=False, checkpoint=folder / "alone.pt")
    two_processes(worker, folder)
    return [torch.load(folder / f"result{rank}", weights_only=True) for rank in range(2)]


def test_bitwise_equal_after_a_resume(results: list[dict[str, Any]]) -> None:
    assert results[0]["same"] and results[1]["same"]
    assert results[0]["losses"] != results[1]["losses"]  # on data of their own


@pytest.mark.hostile("writers")
def test_the_first_process_writes(results: list[dict[str, Any]]) -> None:
    assert [found["there"] for found in results] == [[True, False]] * 2


def test_a_failure_reaches_every_process(results: list[dict[str, Any]]) -> None:
    for rank, found in enumerate(results):
        assert "Error" in found["disk"].split(":")[0] and "file" in found["disk"]
        assert ("not written by the first process" in found["disk"]) == (rank == 1)
        assert "exists for some processes, but not for those of rank [1]" in found["unseen"]
        assert "was written by 1 processes, there are 2" in found["alone"]
