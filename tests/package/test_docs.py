"""The documentation: every code block runs, every link leads somewhere, every public name is in the API."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import hiermt

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
WITH_CODE = [page for page in PAGES if BLOCK.search(page.read_text("utf-8"))]
# Pages whose blocks need more than the package and PyG.
NEEDS = {"tutorial.md": ("pandas", "safetensors"), "migrate.md": ("torch_geometric",), "missing.md": ("pandas",)}


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda p: p.name)
def test_code_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one namespace a page, from top to bottom."""
    for name in NEEDS.get(page.name, ()):
        pytest.importorskip(name)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    for block in BLOCK.findall(page.read_text("utf-8")):
        exec(compile(block, str(page), "exec"), names)
    if page.name == "README.md":
        predictions = names["predictions"]
        assert isinstance(predictions, torch.Tensor) and predictions.shape == (3200,)
        assert set(predictions.tolist()) <= {0, 1, 2}


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plt = pytest.importorskip("matplotlib.pyplot")
    if importlib.util.find_spec("skfolio") is None:
        pytest.skip("the prices are in skfolio")
    plt.switch_backend("Agg")
    monkeypatch.chdir(tmp_path)
    cells = json.loads((ROOT / "examples" / "quickstart.ipynb").read_text("utf-8"))["cells"]
    names: dict[str, object] = {"__name__": "__main__"}
    for cell in cells:
        if cell["cell_type"] == "code":
            assert not cell["outputs"], "commit the notebook without outputs"
            exec("".join(cell["source"]), names)
    plt.close("all")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text("utf-8")):
        assert target.startswith(("http", "_static/")) or (page.parent / target).exists(), target


@pytest.mark.parametrize("module", ["hiermt", "hiermt.data", "hiermt.functional", "hiermt.training.tasks"])
def test_the_api_page_has_every_public_module(module: str) -> None:
    assert f".. automodule:: {module}\n" in (ROOT / "docs" / "api.md").read_text("utf-8")
    for name in importlib.import_module(module).__all__:
        value = getattr(importlib.import_module(module), name)
        if callable(value):
            assert value.__doc__ and value.__doc__.strip(), f"{module}.{name} has no docstring"


def test_the_picture_shows_every_package(tmp_path: Path) -> None:
    code = f"import pictures, pathlib; print(pictures.write(pathlib.Path({str(tmp_path)!r})))"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT / "docs", check=True, capture_output=True, text=True)
    drawn = (tmp_path / "layers.svg").read_text("utf-8")
    folders = {path.parent.name for path in Path(hiermt.__file__).parent.glob("*/__init__.py")}
    assert {name for name in folders if f">{name}</text>" not in drawn} == set()
