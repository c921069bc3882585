"""Small models for the tests of checkpoints, and how two of them are compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import hiermt
from hiermt.io import checkpoint

pytest.importorskip("safetensors")
from safetensors.torch import load_file, save_file


def model_of(**options: Any) -> hiermt.TGCN_HierarchicalMT:
    return hiermt.TGCN_HierarchicalMT(5, 7, **options)


def assert_equal(found: Any, wanted: Any) -> None:
    mine = found.state_dict()
    assert list(mine) == list(wanted.state_dict())
    assert all(torch.equal(mine[key], value) for key, value in wanted.state_dict().items())


def as_before(folder: Path) -> None:
    """What earlier versions wrote: weights that know nothing of their config."""
    save_file(load_file(str(folder / checkpoint.WEIGHTS)), str(folder / checkpoint.WEIGHTS), {"format": "pt"})
