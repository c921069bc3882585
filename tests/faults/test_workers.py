"""Workers of a DataLoader that are ended from outside."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
import torch

import hiermt
from hiermt import data
from hiermt.testing import stock_graph

pytest.importorskip("torch_geometric")
pytestmark = pytest.mark.hostile("workers", "killed")


class Deadly(torch.utils.data.Dataset[Any]):
    """Samples of another data set; with one of them its worker gets a signal."""

    def __init__(self, samples: Any, signal_of: signal.Signals | None) -> None:
        self.samples, self.signal_of = samples, signal_of

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, i: int) -> Any:
        if i == 13 and self.signal_of is not None and torch.utils.data.get_worker_info() is not None:
            os.kill(os.getpid(), self.signal_of)
        return self.samples[i]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGKILL])
def test_a_worker_that_is_ended_ends_the_training_with_an_exception(kind: signal.Signals, tmp_path: Any) -> None:
    from torch_geometric.loader import DataLoader

    labels = [torch.randint(2, (6, 40)) for _ in range(2)]
    whole = data.WindowDataset(torch.randn(6, 40, 3), *stock_graph(6, 8, 1), 5, *labels)
    samples = data.pyg_loader(whole, range(24), 1, shuffle=False).dataset
    model = hiermt.TGCN_HierarchicalMT(3, 4)
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def run(signal_of: signal.Signals | None, epochs: int) -> None:
        loader = DataLoader(Deadly(samples, signal_of), batch_size=4, num_workers=2)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        path = tmp_path / "state.pt"
        hiermt.train_hierarchical(model, optimizer, None, loader, None, epochs, checkpoint=path, progress=False)

    with pytest.raises(RuntimeError, match=r"DataLoader worker .*(signal|exited unexpectedly)"):
        run(kind, 2)
    assert not (tmp_path / "state.pt").exists(), "no epoch came to its end"
    run(None, 1)
    assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(bool(value.isfinite().all()) for value in model.state_dict().values())
