"""Files that earlier versions wrote: they load, and compute what they computed."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import hiermt
from hiermt.testing import assert_close

pytest.importorskip("safetensors.torch")

from safetensors.torch import load_file

from model import golden

KINDS = {"backbone": hiermt.TGCN, "a3tgcn": hiermt.A3TGCN, "multitask": hiermt.MultiTaskTGCN}
FOLDERS = [path for path in sorted(golden.FOLDER.glob("*/*")) if path.name in golden.MODELS]
VERSIONS = sorted(golden.FOLDER.iterdir())
every_version = pytest.mark.parametrize("version", VERSIONS, ids=lambda path: path.name)


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: "-".join(path.parts[-2:]))
def test_loads_and_computes_the_same(folder: Path, backend: str) -> None:
    if backend == "native" and (reason := hiermt.native.extension.why_not_native("cpu")) is not None:
        pytest.skip(reason)
    kind: Any = KINDS.get(folder.name, hiermt.TGCN_HierarchicalMT)
    expected, kept = load_file(folder / "expected.safetensors"), load_file(folder / "model.safetensors")
    inputs = expected["x"], expected["edge_index"], expected.get("edge_weight")
    # Two tasks or a sum over periods: those classes have no other form to be read from.
    foreign = [] if folder.name in ("a3tgcn", "multitask") else [hiermt.from_reference(folder, verbose=False)]
    for model in (kind.from_pretrained(folder), *foreign):
        found = model.state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in kept.items())
        model.backend = backend
        with torch.no_grad():
            outputs = golden.outputs_of(model(*inputs))
        for i, output in enumerate(outputs):
            assert_close(output, expected[f"output{i}"])


@every_version
def test_a_training_goes_on(version: Path, tmp_path: Path) -> None:
    (tmp_path / "state").write_bytes((version / "training" / "state").read_bytes())
    model, losses = golden.training_of(golden.EPOCHS, checkpoint=tmp_path / "state", resume=True)
    expected = load_file(version / "training" / "expected.safetensors")
    kept = expected.pop("losses")
    # Those of the first epochs are read, not computed again.
    assert torch.equal(torch.tensor(losses)[: golden.CUT], kept[: golden.CUT])
    assert_close(torch.tensor(losses), kept)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-4)


@every_version
def test_the_folder_of_a_command(version: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its model predicts what it predicted, and its record makes a training with the same options."""
    pytest.importorskip("pandas")
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    # Figures take longer than the training.
    monkeypatch.setattr("hiermt.cli.report._image", lambda name, *_: name)
    folder = version / "command"
    monkeypatch.chdir(folder)
    rows = tmp_path / "rolling.csv"
    command = ["predict", "--model", ".", "--prices", "prices.csv", "--rolling", "--out", str(rows)]
    assert golden.command_line(command) == 0
    found = {(row["date"], row["symbol"]): row for row in csv.DictReader(rows.open())}
    for row in csv.DictReader((folder / "predictions.csv").open()):
        got = found[row["date"], row["symbol"]]
        for name in ("confidence", "p_down", "p_neutral", "p_up", "p_signal", "p_up_if_signal"):
            assert float(got[name]) == pytest.approx(float(row[name]), abs=2e-4)
    assert golden.command_line(["train", "--config", "run.json", "--out", str(tmp_path / "again")]) == 0
    old, new = (json.loads((one / "run.json").read_text()) for one in (folder, tmp_path / "again"))
    assert new["inputs"]["prices"]["sha256"] == old["inputs"]["prices"]["sha256"]
    # A later version may have more options; none is lost or means another thing.
    expected = {**old["options"], "prices": str(folder / "prices.csv")}
    assert {name: new["options"][name] for name in expected} == expected and new["features"] == old["features"]


def test_there_is_every_kind_of_the_first_version() -> None:
    first = golden.FOLDER / "0.1.0"
    assert {path.name for path in first.iterdir()} == {*golden.MODELS, "training", "command"}
