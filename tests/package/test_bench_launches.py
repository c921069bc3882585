"""bench/launches.py: the launches and the memory of a step, which must not grow."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from simt.cases import needs_harness

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCH))
    spec = importlib.util.spec_from_file_location("bench_launches", BENCH / "launches.py")
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "bench_launches", found)
    spec.loader.exec_module(found)
    return found


@needs_harness
@pytest.mark.parametrize(("direction", "count", "megabytes"), [("forward", 4, 20.5), ("training", 20, 38.4)])
def test_a_step_of_32_graphs(direction: str, count: int, megabytes: float, launches: ModuleType) -> None:
    found = launches.operators("stocks-3200", direction)
    assert sum(one.launches for one in found) == count
    assert round(max(one.peak_bytes for one in found) / 1e6, 1) == megabytes


@needs_harness
def test_memory_is_what_is_there_at_once(launches: ModuleType) -> None:
    with launches.harness.Simt(launches.COUNT_ALONE) as simt, launches.Recorder(simt) as recorder:
        first = torch.ones_like(torch.empty(1000))
        second = torch.ones_like(first)
        view = first[:10]
        del first
        third = torch.ones_like(second)
        del view
        fourth = torch.ones_like(third)
    assert fourth.numel() == 1000
    peaks = [one.peak_bytes for one in recorder.operators if one.name == "aten::ones_like"]
    # The view keeps its storage; the argument of the first was freed at once.
    assert peaks == [8000, 8000, 12000, 12000]


@needs_harness
def test_memory_is_without_what_the_step_was_given(launches: ModuleType) -> None:
    given = torch.ones(1000)
    with launches.harness.Simt(launches.COUNT_ALONE) as simt, launches.Recorder(simt) as recorder:
        view = given[:10]
        view.add_(1)
        given.fill_(2)
        kept = torch.ones_like(torch.empty(10))
    assert kept.numel() == 10
    assert [one.peak_bytes for one in recorder.operators][:3] == [0, 0, 0]
    assert recorder.operators[-1].peak_bytes == 80


@pytest.mark.parametrize(("tensors", "expected"), [(36, 1), (37, 2), (46, 2)])
def test_adam_takes_36_tensors_a_launch(tensors: int, expected: int, launches: ModuleType) -> None:
    lists = [[torch.zeros(1)] * tensors] * 4
    assert launches.launches_of(torch.ops.aten._fused_adam_.default, [*lists, [], []]) == expected


def test_an_operator_of_unknown_launches_is_an_error(launches: ModuleType) -> None:
    with pytest.raises(NotImplementedError, match="how many kernels logsumexp launches"):
        launches.launches_of(torch.ops.aten.logsumexp.default, [])
