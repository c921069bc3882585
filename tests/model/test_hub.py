"""Models as the Hugging Face Hub takes them: its mixin, with its calls to the network replaced by a folder."""

from __future__ import annotations

import copy
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import hiermt
from hiermt import testing
from hiermt.nn.hub import card_text, on_hub

hub = pytest.importorskip("huggingface_hub")
pytest.importorskip("safetensors")
NAMES = ["LogReturn", "RSI", "a|b"]


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder in the place of the Hub, behind the functions that the mixin and hiermt call."""
    folder = tmp_path / "remote"

    class Api:
        def __init__(self, token: Any = None) -> None: ...

        def create_repo(self, repo_id: str, **_: Any) -> Any:
            return SimpleNamespace(repo_id=repo_id)

        def upload_folder(self, *, repo_id: str, folder_path: Path, **_: Any) -> str:
            shutil.copytree(folder_path, folder / repo_id, dirs_exist_ok=True)
            return f"commit of {repo_id}"

    def download(repo_id: str, filename: str, **_: Any) -> str:
        return str(folder / repo_id / filename)

    def snapshot(repo_id: str, *, allow_patterns: list[str], **options: Any) -> str:
        assert set(options) == {"revision", "cache_dir", "force_download", "local_files_only", "token"}
        assert sorted(allow_patterns) == ["config.json", "model.safetensors"]
        return str(folder / repo_id)

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    monkeypatch.setattr("huggingface_hub.hub_mixin.hf_hub_download", download)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    return folder


@pytest.mark.parametrize("kind", [hiermt.TGCN_HierarchicalMT, hiermt.TGCN, hiermt.A3TGCN, hiermt.MultiTaskTGCN])
def test_there_and_back(kind: Any, remote: Path, tmp_path: Path) -> None:
    heads = {"heads": {"signal": 2, "move": 1}} if kind is hiermt.MultiTaskTGCN else {}
    sizes = {"out_channels": 2} if kind in (hiermt.TGCN, hiermt.A3TGCN) else {}
    model = on_hub(kind)(in_channels=3, hidden_size=5, feature_names=NAMES, **heads, **sizes)
    assert isinstance(model, kind) and isinstance(model, hub.PyTorchModelHubMixin)
    assert model.push_to_hub("me/stocks") == "commit of me/stocks"
    assert {path.name for path in (remote / "me/stocks").iterdir()} == {"config.json", "model.safetensors", "README.md"}
    again = on_hub(kind).from_pretrained("me/stocks")
    # What was uploaded is a folder of hiermt, without the Hub.
    plain = kind.from_pretrained(remote / "me/stocks")
    x, edges = torch.randn(12, 4, 3), testing.stock_graph(12, 40)
    for found in (again(x, *edges), plain(x, *edges)):
        torch.testing.assert_close(found, model(x, *edges), rtol=0, atol=0)
    assert again.config == plain.config == model.config


def test_the_card_tells_arguments_features_and_metrics(tmp_path: Path) -> None:
    model = on_hub(hiermt.TGCN_HierarchicalMT)(3, 5, feature_names=NAMES)
    metrics = {"validation": {"signal_auc": 0.6871234, "days": 70}, "losses": [1.0, 2.0], "note": "a|b"}
    model.save_pretrained(tmp_path, model_card_kwargs={"metrics": metrics})
    card = hub.ModelCard.load(tmp_path / "README.md")
    assert card.data.library_name == "hiermt" and {"stocks", "pytorch_model_hub_mixin"} <= set(card.data.tags)
    for line in ("| hidden_size | 5 |", "| validation.signal_auc | 0.687123 |", "| validation.days | 70 |"):
        assert f"\n{line}\n" in card.text
    assert r"| note | a\|b |" in card.text and "`LogReturn`, `RSI`, `a|b`" in card.text and "losses" not in card.text
    (tmp_path / "README.md").write_text("mine")
    model.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"
    with pytest.raises(TypeError, match="metrics: expected a mapping, got list"):
        card_text(model, "x", [])  # type: ignore[arg-type]


def test_arguments_beside_those_of_the_config(remote: Path) -> None:
    kind = on_hub(hiermt.TGCN_HierarchicalMT)
    kind(3, 5).push_to_hub("me/stocks")
    model = kind.from_pretrained("me/stocks", layout="NFT", backend="reference")
    assert (model.config["layout"], model.backend) == ("NFT", "reference")
    with pytest.raises(ValueError, match="colour"):
        kind.from_pretrained("me/stocks", colour="red")
    (remote / "me/stocks" / "model.safetensors").write_bytes(b"half")
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        kind.from_pretrained("me/stocks")


def test_fields_of_the_card(tmp_path: Path) -> None:
    kind = on_hub(hiermt.TGCN_HierarchicalMT)
    fields = {"license": "mit", "language": "en", "tags": ["mine", "stocks"], "base_model": "me/other"}
    kind(3, 5).save_pretrained(tmp_path / "one", model_card_kwargs={**fields, "metrics": {"days": 70}})
    card = hub.ModelCard.load(tmp_path / "one" / "README.md")
    assert {name: getattr(card.data, name) for name in fields if name != "tags"} == {
        name: value for name, value in fields.items() if name != "tags"
    }
    assert card.data.tags[-1] == "mine" and card.data.tags.count("stocks") == 1 and "| days | 70 |" in card.text
    kind(3, 5).save_pretrained(tmp_path / "other")
    other = hub.ModelCard.load(tmp_path / "other" / "README.md").data
    assert other.license is None and "mine" not in other.tags
    for name in ("colour", "kwargs", "repo_url"):
        with pytest.raises(TypeError, match=f"model_card_kwargs: expected .*license.*, got '{name}'"):
            kind(3, 5).save_pretrained(tmp_path / "third", model_card_kwargs={name: "red"})
    for tags in ("mine", None, ["mine", 3]):
        with pytest.raises(TypeError, match="tags: expected a list of str, got"):
            kind(3, 5).save_pretrained(tmp_path / "third", model_card_kwargs={"tags": tags})
    assert not (tmp_path / "third").exists()


def test_arguments_of_the_mixin(remote: Path, tmp_path: Path) -> None:
    kind = on_hub(hiermt.TGCN_HierarchicalMT)
    kind(3, 5).push_to_hub("me/stocks")
    for device in ("meta", torch.device("meta")):
        model = kind.from_pretrained("me/stocks", map_location=device, strict=True)
        assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    for wrong in ("nowhere", {"cuda": "cpu"}, None):
        with pytest.raises(ValueError, match=r"map_location: expected a device .*, got"):
            kind.from_pretrained("me/stocks", map_location=wrong)
    with pytest.raises(ValueError, match=r"strict: expected True, .* got False"):
        kind.from_pretrained("me/stocks", strict=False)
    with pytest.raises(ValueError, match="config: expected None"):
        kind(3, 5).save_pretrained(tmp_path / "model", config={"hidden_size": 6})


def test_a_model_of_the_hub_leaves_for_pyg() -> None:
    pyg = pytest.importorskip("hiermt.pyg", exc_type=ImportError)
    model = on_hub(hiermt.TGCN_HierarchicalMT)(3, 5)
    x, edges = torch.randn(12, 4, 3), testing.stock_graph(12, 40)
    for found, expected in zip(pyg.like(model)(x, *edges), model(x, *edges), strict=True):
        testing.assert_close(found, expected)


def test_pickles_and_copies() -> None:
    model = on_hub(hiermt.TGCN_HierarchicalMT)(3, 5, feature_names=NAMES)
    x, edges = torch.randn(12, 4, 3), testing.stock_graph(12, 40)
    for found in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert type(found) is type(model) and found.config == model.config
        torch.testing.assert_close(found(x, *edges), model(x, *edges), rtol=0, atol=0)
        assert found.signal_head.weight is not model.signal_head.weight


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"pip install 'hiermt\[hub\]'"):
        on_hub.__wrapped__(hiermt.TGCN)
