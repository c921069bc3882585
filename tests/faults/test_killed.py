"""kill -9 at any moment: of a training, of one that writes a model, of a prediction."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import pytest
import torch

import hiermt
from hiermt import data
from hiermt.cli.main import main
from hiermt.testing import stock_graph
from support.killing import killed_again_and_again
from support.price_tables import bars
from support.soak import long

pytestmark = [
    pytest.mark.hostile("killed"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
]
STATE, WEIGHTS = "state.pt", "weights.pt"


def train(folder: Path) -> None:
    """Eight epochs, from the state that the process before left; at last the weights are written."""
    generator = torch.Generator().manual_seed(0)
    labels = [torch.randint(2, (6, 60), generator=generator) for _ in range(2)]
    whole = data.WindowDataset(torch.randn(6, 60, 3, generator=generator), *stock_graph(6, 8, 1), 5, *labels)
    torch.manual_seed(os.getpid())  # of no influence: the state has the weights and the order
    if not (folder / STATE).exists():
        torch.manual_seed(0)
    model = hiermt.TGCN_HierarchicalMT(3, 8)
    hiermt.train_hierarchical(
        model,
        torch.optim.Adam(model.parameters(), 0.01),
        None,
        data.WindowLoader(whole, range(40), 8, shuffle=True, seed=1),
        data.WindowLoader(whole, range(44, 54), 8),
        8,
        checkpoint=folder / STATE,
        resume=True,
        progress=False,
    )
    torch.save(model.state_dict(), folder / WEIGHTS)


@pytest.mark.parametrize("kills", [4, long(60)])
def test_a_training_resumes_bitwise_equal(kills: int, tmp_path: Path) -> None:
    (tmp_path / "quiet").mkdir()
    (tmp_path / "killed").mkdir()
    train(tmp_path / "quiet")
    killed = killed_again_and_again("faults.test_killed", "train", tmp_path / "killed", kills, 0.4)
    assert killed > 0, "every child was done before its time"
    expected, found = (torch.load(tmp_path / one / WEIGHTS) for one in ("quiet", "killed"))
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert sorted(path.name for path in (tmp_path / "killed").iterdir()) == [STATE, WEIGHTS]


def save(folder: Path) -> None:
    """Saves two models in turn, many times."""
    for i in range(40):
        torch.manual_seed(i % 2)
        hiermt.TGCN_HierarchicalMT(3, 8, conv_activation=("between", "after")[i % 2]).save_pretrained(folder / "model")


@pytest.mark.parametrize("kills", [6, long(200)])
def test_a_model_is_old_or_new_and_nothing_stays_beside_it(kills: int, tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    assert killed_again_and_again("faults.test_killed", "save", tmp_path, kills, 0.2) > 0
    found = hiermt.TGCN_HierarchicalMT.from_pretrained(tmp_path / "model")
    assert found.config["conv_activation"] == "after"
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("step", range(6))
def test_killed_within_a_save(step: int, tmp_path: Path) -> None:
    """Before each of its renames and flushes: the folder loads, or says that its files are not of one save."""
    pytest.importorskip("safetensors")
    models = [hiermt.TGCN_HierarchicalMT(3, 4, conv_activation=name) for name in ("between", "after")]
    models[0].save_pretrained(tmp_path)
    child = os.fork()
    if child == 0:
        left = step

        def deadly(name: str) -> None:
            original = getattr(os, name)

            def call(*args: object) -> object:
                nonlocal left
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return original(*args)

            setattr(os, name, call)

        deadly("replace")
        deadly("fsync")
        models[1].save_pretrained(tmp_path)
        os._exit(0)
    os.waitpid(child, 0)
    found = "refused"
    with contextlib.suppress(ValueError):
        found = hiermt.TGCN_HierarchicalMT.from_pretrained(tmp_path).config["conv_activation"]
    # Between its two renames the weights are new and the config is old: not of one save.
    assert found == ("between", "between", "between", "refused", "after", "after")[step]
    models[1].save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert hiermt.TGCN_HierarchicalMT.from_pretrained(tmp_path).config["conv_activation"] == "after"


def predict(folder: Path) -> None:
    out = folder / "out"
    out.mkdir(exist_ok=True)
    assert main(["predict", "--model", str(folder / "model"), "--prices", str(folder / "prices.csv"), "--rolling",
                 "--out", str(out / "decisions.csv")]) == 0  # fmt: skip


@pytest.mark.parametrize("kills", [3, long(40)])
def test_a_prediction_is_whole_or_not_there(kills: int, tmp_path: Path) -> None:
    for name in ("pandas", "sklearn", "matplotlib", "safetensors"):
        pytest.importorskip(name)
    prices = tmp_path / "prices.csv"
    bars(4, 200).to_csv(prices, index=False)
    assert main(["train", "--prices", str(prices), "--out", str(tmp_path / "model"), "--epochs", "1", "--window", "8",
                 "--hidden", "4", "--device", "cpu"]) == 0  # fmt: skip
    predict(tmp_path)
    expected = (tmp_path / "out" / "decisions.csv").read_bytes()
    assert killed_again_and_again("faults.test_killed", "predict", tmp_path, kills, 0.4) > 0
    assert (tmp_path / "out" / "decisions.csv").read_bytes() == expected
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["decisions.csv"]
