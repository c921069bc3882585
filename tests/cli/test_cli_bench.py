"""The benchmark command at small sizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hiermt import MultiTaskLoss, TGCN_HierarchicalMT, data
from hiermt.cli import bench, speed
from hiermt.cli.main import main


@pytest.fixture
def _small_bench(monkeypatch):
    for name, value in {"STOCKS": 12, "WINDOW": 4, "BATCH": 2, "STEPS": 3, "TEST_WINDOWS": 3, "PYG_STEPS": 2}.items():
        monkeypatch.setattr(bench, name, value)
    monkeypatch.setattr(bench, "stock_graph", lambda stocks: data.graph_from_adjacency(np.ones((stocks, stocks))))


@pytest.mark.usefixtures("_small_bench")
class TestBench:
    def test_step(self, capsys):
        pytest.importorskip("torch_geometric")
        assert main(["bench", "--seconds", "0.1", "--device", "cpu"]) == 0
        out = capsys.readouterr().out
        rows = [line.split() for line in out.splitlines() if " x" in line[-3:]]
        assert [row[0] for row in rows] == ["forward", "training"]
        assert out.count("PyG eager") == 1
        difference = float(out.rsplit(": ", 1)[1])
        assert difference < 1e-4

    def test_job(self, capsys):
        pytest.importorskip("torch_geometric")
        assert main(["bench", "--job", "seed", "--epochs", "2", "--device", "cpu"]) == 0
        out = capsys.readouterr().out
        assert "measured" in out
        assert "estimated: 2 steps and one test pass timed, scaled to 2 epochs" in out

    def test_without_pyg(self, capsys, monkeypatch):
        monkeypatch.setattr(speed, "has_pyg", lambda: False)
        assert main(["bench", "--seconds", "0.1"]) == 0
        assert main(["bench", "--job", "seed", "--epochs", "1"]) == 0
        assert capsys.readouterr().out.count("pip install 'hiermt[pyg]'") == 2

    def test_timing_does_not_train_the_model(self):
        model = TGCN_HierarchicalMT(13, 4)
        before = {key: value.clone() for key, value in model.state_dict().items()}
        batch = next(iter(data.WindowLoader(bench.synthetic(torch.device("cpu")), range(2))))
        speed.compare_training(model, batch, 0.01)
        assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_bench_loss_is_the_loss():
    torch.manual_seed(0)
    signal, direction = torch.randn(9, 2), torch.randn(9, 2)
    for labels in (torch.tensor([0, 1, 1, 0, 1, 0, 0, 1, 1]), torch.zeros(9, dtype=torch.int64)):
        up = torch.arange(9) % 2
        expected, _ = MultiTaskLoss()(signal, direction, labels, up, labels == 1)
        torch.testing.assert_close(bench._loss(signal, direction, labels, up), expected)
