"""Folders of ``save_pretrained``: of one save, with ties and names, or refused."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import hiermt
from hiermt.io import checkpoint
from support.checkpoint_models import as_before, assert_equal, model_of

pytest.importorskip("safetensors")
from safetensors.torch import load_file


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    model = model_of()
    tie(model, "heads")
    written = set()
    for i in range(8):
        model.save_pretrained(tmp_path / str(i))
        written.add((tmp_path / str(i) / checkpoint.WEIGHTS).read_bytes())
    assert len(written) == 1


def test_folders_of_the_version_before_still_load(tmp_path: Path) -> None:
    model = model_of(layout="NFT", conv_activation="after")
    model.save_pretrained(tmp_path)
    as_before(tmp_path)
    again = hiermt.TGCN_HierarchicalMT.from_pretrained(tmp_path)
    assert_equal(again, model)
    assert again.config == model.config


def test_names_of_features_and_foreign_sections_have_room(tmp_path: Path) -> None:
    model = model_of()
    names = ["a", "b", "c", "d", "e"]
    model.config["feature_names"] = names
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / checkpoint.CONFIG).read_text())
    (tmp_path / checkpoint.CONFIG).write_text(json.dumps({**config, "data": {"window": 5}}))
    again = hiermt.TGCN_HierarchicalMT.from_pretrained(tmp_path)
    assert again.config["feature_names"] == names
    assert hiermt.from_reference(model, verbose=False).config == model.config


def tie(model: hiermt.TGCN_HierarchicalMT, how: str) -> None:
    first, second = model.tgcn_backbone.cells[0], model.tgcn_backbone.cells[1]
    if how == "heads":
        model.direction_head.weight = model.signal_head.weight
    elif how == "module":
        model.direction_head = model.signal_head
    elif how == "gates":
        second.lin_u.weight = second.lin_r.weight = second.lin_c.weight
    elif how == "share_weights":
        for cell in (first, second):
            cell.gcn.convs[0].lin_r = cell.gcn.convs[0].lin_l  # type: ignore[union-attr]
    elif how == "views":
        flat = torch.randn(4, 7)
        model.signal_head.weight, model.direction_head.weight = nn.Parameter(flat[:2]), nn.Parameter(flat[2:])


@pytest.mark.parametrize("how", ["heads", "module", "gates", "share_weights", "views"])
def test_tied_weights_are_saved_and_stay_tied(how: str, tmp_path: Path) -> None:
    model = model_of()
    tie(model, how)
    model.save_pretrained(tmp_path)
    again = hiermt.TGCN_HierarchicalMT.from_pretrained(tmp_path)
    assert_equal(again, model)
    assert len(list(again.parameters())) == len(list(model.parameters()))
    copied = hiermt.from_reference(dict(model.state_dict()), layout="NTF", verbose=False)
    assert_equal(copied, model)
    assert len(list(copied.parameters())) == len(list(model.parameters()))
    assert load_file(str(tmp_path / checkpoint.WEIGHTS)).keys() == model.state_dict().keys()


class Interrupted(BaseException):
    pass


@pytest.mark.hostile("interrupted-write")
@pytest.mark.parametrize("error", [KeyboardInterrupt, Interrupted, OSError(errno.ENOSPC, "No space left on device")])
@pytest.mark.parametrize("step", range(12))
def test_a_folder_is_old_or_new(error: Any, step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = model_of(), model_of(conv_activation="after")
    old.save_pretrained(tmp_path)
    calls = 0

    def failing(original: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == step + 1:
                raise error
            return original(*args, **kwargs)

        return call

    with monkeypatch.context() as patched:
        for name in ("replace", "fsync", "chmod"):
            patched.setattr(os, name, failing(getattr(os, name)))
        patched.setattr(Path, "write_text", failing(Path.write_text))
        with contextlib.suppress(KeyboardInterrupt, Interrupted, OSError):
            new.save_pretrained(tmp_path)
    again = hiermt.TGCN_HierarchicalMT.from_pretrained(tmp_path)
    wanted = old if again.config == old.config else new
    assert_equal(again, wanted)
    assert again.config == wanted.config
    left = {path.name for path in tmp_path.iterdir() if not path.name.startswith(".hiermt-writing-")}
    assert left == {checkpoint.WEIGHTS, checkpoint.CONFIG}


def test_new_weights_under_an_old_config_are_refused(tmp_path: Path) -> None:
    model_of().save_pretrained(tmp_path / "old")
    for other in (model_of(conv_activation="after"), model_of(layout="NFT"), model_of(layers_nb=3)):
        other.save_pretrained(tmp_path / "new")
        os.replace(tmp_path / "new" / checkpoint.WEIGHTS, tmp_path / "old" / checkpoint.WEIGHTS)
        with pytest.raises(ValueError, match=r"(conv_activation|layout|layers_nb) is .*not of one save"):
            hiermt.TGCN_HierarchicalMT.from_pretrained(tmp_path / "old")
        with pytest.raises(ValueError, match="not of one save"):
            hiermt.from_reference(tmp_path / "old")
