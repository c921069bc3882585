"""Writes the golden files of this version that are not there yet: ``PYTHONPATH=tests python tests/model/golden.py``.

Run it once a release. A file that is there is what a user may have, and stays as it is.
"""

from __future__ import annotations

import csv
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

import hiermt
from hiermt import data, training
from hiermt.cli.main import main as command_line
from hiermt.testing import stock_graph

FOLDER = Path(__file__).parent / "golden"
MODELS = {
    "gatv2": lambda: hiermt.TGCN_HierarchicalMT(3, 4),
    "gatv2-single": lambda: hiermt.TGCN_HierarchicalMT(
        3, 4, conv_layers=1, edge_dim=None, conv_activation="after", layout="NFT"
    ),
    "gcn": lambda: hiermt.TGCN_HierarchicalMT(3, 4, use_gat=False, feature_names=["a", "b", "c"]),
    "backbone": lambda: hiermt.TGCN(3, 2, 4, layers_nb=1, layout="NTF"),
    "a3tgcn": lambda: hiermt.A3TGCN(3, 2, 4, layout="NTF"),
    "multitask": lambda: hiermt.MultiTaskTGCN(3, 4, heads={"signal": 2, "move": 1}, layout="NTF"),
}
# Epochs of the kept training state, and of the whole training.
CUT, EPOCHS = 2, 4
TRAIN = ["--epochs", "1", "--window", "5", "--hidden", "4", "--horizon", "2", "--device", "cpu", "--seed", "3"]


def write_model(name: str, folder: Path) -> None:
    """A saved model, inputs and its outputs."""
    torch.manual_seed(0)
    model = MODELS[name]()
    model.save_pretrained(folder)
    edge_index, edge_weight = stock_graph(6, 12, isolated=1)
    x = torch.randn(6, 3, 5) if model.layout == "NFT" else torch.randn(6, 5, 3)
    weight = None if model.config["use_gat"] and model.config["edge_dim"] is None else edge_weight
    tensors = {f"output{i}": each for i, each in enumerate(outputs_of(model(x, edge_index, weight)))}
    tensors |= {"x": x, "edge_index": edge_index} | ({} if weight is None else {"edge_weight": weight})
    save_file(tensors, folder / "expected.safetensors")


def outputs_of(output: Any) -> tuple[torch.Tensor, ...]:
    """The tensors that a model returns, in the order of their names or places."""
    if isinstance(output, dict):
        output = tuple(output[name] for name in sorted(output))
    return tuple(one.detach().contiguous() for one in (output if isinstance(output, tuple) else (output,)))


def training_of(epochs: int, **options: Any) -> tuple[Any, list[float]]:
    """A model and its training losses, with a scheduler and early stopping."""
    generator = torch.Generator().manual_seed(0)
    series = torch.randn(6, 40, 3, generator=generator)
    labels = [torch.randint(2, (6, 40), generator=generator) for _ in range(2)]
    whole = data.WindowDataset(series, *stock_graph(6, 8, 1), 5, *labels)
    torch.manual_seed(0)
    model = hiermt.TGCN_HierarchicalMT(3, 4)
    optimizer = training.adam(model, 1e-2)
    losses, *_ = hiermt.train_hierarchical(
        model,
        optimizer,
        None,
        data.WindowLoader(whole, range(24), 8, shuffle=True, seed=3),
        data.WindowLoader(whole, range(28, 36), 8),
        epochs,
        patience=5,
        scheduler=torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.9),
        progress=False,
        **options,
    )
    return model, losses


def write_training(folder: Path) -> None:
    """The state of a training after :data:`CUT` epochs, and what :data:`EPOCHS` lead to."""
    training_of(CUT, checkpoint=folder / "state")
    model, losses = training_of(EPOCHS)
    save_file({**model.state_dict(), "losses": torch.tensor(losses)}, folder / "expected.safetensors")


def write_command(folder: Path) -> None:
    """Prices, and the files of ``hiermt train`` on them that other commands read."""
    generator = torch.Generator().manual_seed(0)
    moves = 0.01 * torch.randn(200, 4, generator=generator) + 0.01 * torch.randn(200, 1, generator=generator)
    close = 50 * moves.cumsum(0).exp()
    with open(folder / "prices.csv", "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["Date", "A", "B", "C", "D"])
        days = np.busday_offset("2020-01-01", range(200), roll="forward")
        for day, row in zip(days, close.tolist(), strict=True):
            writer.writerow([day, *(f"{price:.2f}" for price in row)])
    with tempfile.TemporaryDirectory() as out:
        assert command_line(["train", "--prices", str(folder / "prices.csv"), "--out", out, *TRAIN]) == 0
        for name in ("config.json", "model.safetensors", "predictions.csv"):
            (folder / name).write_bytes((Path(out) / name).read_bytes())
        record = json.loads((Path(out) / "run.json").read_text())
    # Without the folders of a machine.
    record["options"]["prices"] = record["inputs"]["prices"]["path"] = "prices.csv"
    record |= {"arguments": ["train", "--prices", "prices.csv", "--out", "model", *TRAIN], "machine": {}}
    (folder / "run.json").write_text(json.dumps(record, indent=2) + "\n")


def main() -> None:
    version = FOLDER / hiermt.__version__
    writers = {name: lambda folder, name=name: write_model(name, folder) for name in MODELS}
    for name, write in (writers | {"training": write_training, "command": write_command}).items():
        if not (version / name).exists():
            (version / name).mkdir(parents=True)
            write(version / name)


if __name__ == "__main__":
    main()
