"""Checkpoints that earlier versions wrote: they load, and compute what they computed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import hiermt
from hiermt.testing import assert_close

safetensors = pytest.importorskip("safetensors.torch")

FOLDERS = sorted(path.parent for path in (Path(__file__).parent / "golden").glob("*/*/config.json"))


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: "-".join(path.parts[-2:]))
def test_loads_and_computes_the_same(folder: Path, backend: str) -> None:
    if backend == "native" and (reason := hiermt.native.extension.why_not_native("cpu")) is not None:
        pytest.skip(reason)
    kind = hiermt.TGCN if folder.name == "backbone" else hiermt.TGCN_HierarchicalMT
    expected = safetensors.load_file(folder / "expected.safetensors")
    inputs = expected["x"], expected["edge_index"], expected.get("edge_weight")
    for model in (kind.from_pretrained(folder), hiermt.from_reference(folder, verbose=False)):
        model.backend = backend
        with torch.no_grad():
            output = model(*inputs)
        for i, found in enumerate(output if isinstance(output, tuple) else (output,)):
            assert_close(found, expected[f"output{i}"])


def test_there_are_checkpoints_of_the_first_version() -> None:
    assert {path.name for path in FOLDERS if path.parent.name.startswith("0.1")} >= {"gatv2", "gcn", "backbone"}
