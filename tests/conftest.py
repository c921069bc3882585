"""What every test shares: one thread count, poisoned allocations, the graphs and the backends."""

from __future__ import annotations

import gc
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

# Threads that spin while they wait starve each other where other work shares the cores. Read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
import torch

from hiermt.native import extension
from support import every_kernel

torch.set_num_threads(2)
# torch.manual_seed keeps a stack trace for each kind of device that is not there, which takes longer than many tests.
seed = torch.manual_seed if torch.cuda.is_available() else torch.default_generator.manual_seed


def pytest_addoption(parser: pytest.Parser) -> None:
    """Without pytest-timeout its option is an unknown one, which pytest refuses."""
    if importlib.util.find_spec("pytest_timeout") is None:
        parser.addini("timeout", "seconds a test may take, where pytest-timeout is installed")


# The fast tier: every operator, modules, checkpoints, data and training once, in about a minute on two cores.
FAST = {
    *("model/test_layout.py", "model/test_loss.py", "model/test_checkpoint.py", "ops/test_tolerances.py"),
    *("data/test_data_features.py", "data/test_data_prices.py", "training/test_training.py"),
}
# Of the contract of the operators: twin and outside oracle, but not in each dtype nor on the largest graph.
FAST_CONTRACT = ("test_equals_twin", "test_equals_pyg_or_plain_torch", "test_every_operator_has_problems")
NOT_FAST = ("wide", "float16", "float64")
CONTRACT = "ops/test_contract.py"
TESTS = Path(__file__).parent


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """For the fast tier, reads no file that has none of its tests: to collect all takes longer than to run it."""
    if config.option.markexpr != "fast" or not collection_path.name.startswith("test_"):
        return None
    return collection_path.relative_to(TESTS).as_posix() not in {*FAST, CONTRACT} or None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the fast tier, and lets the longest tests begin first, so that no worker waits for them at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
    for item in items:
        path = item.path.relative_to(TESTS).as_posix()
        in_contract = path == CONTRACT and item.name.startswith(FAST_CONTRACT)
        if path in FAST or (in_contract and not any(word in item.name for word in NOT_FAST)):
            item.add_marker("fast")


def pytest_collection_finish() -> None:
    """Leaves modules and collected tests out of the collector: with 12,000 tests each full round took 0.4 s."""
    gc.collect()
    gc.freeze()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "timeout(seconds): the same for one test")
    every_kernel.register(config)


@pytest.fixture(autouse=True)
def _seeded_and_poisoned() -> Iterator[None]:
    """Same random numbers in every test, and memory that was not written reads as NaN."""
    seed(0)
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=["reference", "native"])
def backend(request: pytest.FixtureRequest) -> str:
    """Each backend that exists here."""
    if request.param == "native":
        reason = extension.why_not_native("cpu")
        if reason is not None:
            pytest.skip(reason)
    return str(request.param)


@pytest.fixture(params=["default", "own"])
def cuda_stream(request: pytest.FixtureRequest) -> Iterator[None]:
    """Torch's default stream on a GPU, then one of its own. cuBLAS, not ours, may be indeterminate."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    if request.param == "default":
        yield
        return
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        yield
    torch.cuda.current_stream().wait_stream(side)
