"""Every input that was ever kept, read again; and a short run without a guide."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("pandas")
pytest.importorskip("safetensors")
from fuzz import readers
from fuzz.guided import CORPUS, blind


@pytest.mark.parametrize("name", readers.READERS)
def test_kept_inputs_raise_what_is_documented(name: str) -> None:
    if name == "parquet":
        pytest.importorskip("pyarrow")
    for content in readers.seeds(name):
        readers.READERS[name](content)
    for path in sorted((CORPUS / name).glob("*")):
        readers.READERS[name](Path(path).read_bytes())
    assert blind(name, seconds=0.5, seed=1) > 0
