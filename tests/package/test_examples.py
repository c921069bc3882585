"""The examples run, each where its library is installed."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def test_own_data_beats_the_last_value_repeated() -> None:
    scores = load("own_data").main(epochs=20)
    assert scores["mae"] < 0.6 * scores["repeated_mae"]


@pytest.mark.parametrize("precision", ["32-true", "bf16-true", "bf16-mixed", "64-true"])
def test_lightning(precision: str, tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    module = load("lightning_module").main(
        max_epochs=2, precision=precision, default_root_dir=tmp_path, logger=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    assert float(module.trainer.callback_metrics["loss"]) < 1.5
    assert all(torch.isfinite(weight).all() for weight in module.parameters())


def test_optuna() -> None:
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = load("tune").main(trials=3, epochs=2)
    assert len(study.trials) == 3 and study.best_value < 1.5
