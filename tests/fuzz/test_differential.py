"""The differential fuzzer itself: a run finds nothing, and a planted fault is found, made small and written down."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fuzz import differential
from fuzz.case import CELLS, FUNCTIONS, MODELS, Case, draw, simpler
from fuzz.needs import needs_both
from hiermt.native import dispatch


@needs_both
def test_a_few_cases_of_every_kind() -> None:
    seen: dict[str, int] = dict.fromkeys((*MODELS, *CELLS, *FUNCTIONS), 0)
    for number in range(1000):
        case = differential.case_of(7, number)
        if seen[case.kind] < 2:
            seen[case.kind] += 1
            differential.assert_fine(case)
    assert all(count == 2 for count in seen.values())


@needs_both
def test_a_planted_fault_is_found_made_small_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The native scan returns 1.001 times its result where there are three channels or more."""
    genuine = dispatch.operator

    def planted(name: str, native: bool) -> Callable[..., Any]:
        operator = genuine(name, native)
        if name != "gated_scan" or not native:
            return operator

        def wrong(*arguments: Any, **options: Any) -> Tensor:
            found: Tensor = operator(*arguments, **options)
            return found * 1.001 if found.size(-1) >= 3 else found

        return wrong

    monkeypatch.setattr(dispatch, "operator", planted)
    _, paths = differential.run(60, seed=3, most=1, folder=tmp_path)
    (path,) = paths
    text = path.read_text()
    # Three channels are what it needs; everything else is as small as it gets.
    assert "hidden=3," in text and not any(word in text for word in ("steps=", "channels=", "copies=", "layout="))
    monkeypatch.undo()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--rootdir={tmp_path}", str(path)]
    tests = Path(__file__).parents[1]
    done = subprocess.run(
        [*command, "-o", f"pythonpath={tests} {tests.parent}"], capture_output=True, text=True, check=False, timeout=200
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_smaller_case_is_consistent_and_every_case_can_be_written() -> None:
    for number in range(300):
        case = draw(random.Random(number))
        assert eval(str(case), {"Case": Case}) == case
        for smaller in simpler(case):
            assert smaller.nodes >= 1 and (smaller.kind not in CELLS or not smaller.gat)


def _changed(place: int) -> Callable[..., Any]:
    """Leaves out the argument at `place`, counted from the end if negative."""

    def planted(operator: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        left = list(arguments)
        left[place] = None
        return operator(*left, **options)

    return planted


def _scaled(operator: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    found = operator(*arguments, **options)
    return found if arguments[1] is not None else found * 1.001


def _widened(operator: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    return operator(*arguments, **options).float()


# What a case varies, the operator that does not heed it, and how.
UNHEEDED = {
    "present of a layer": ("present", "tgcn_layer", ("TGCN", "A3TGCN", "tgcn_layer"), _changed(-1)),
    "present of a convolution": ("present", "conv_stack", ("conv_stack", "gcn_conv", "temporal.TGCN"), _changed(4)),
    "present of a scan": ("present", "gated_scan", ("gated_scan", "gated_scan_windows"), _changed(-1)),
    "present of a history": ("present", "tgcn_layer", ("rolling", "live"), _changed(-1)),
    "rows of a loss": ("present", "multitask_loss", ("multitask_loss",), _changed(-1)),
    "one input": ("one_input", "gated_scan", ("gated_scan", "gated_scan_windows"), _scaled),
    "autocast": ("autocast", "tgcn_layer", ("TGCN", "tgcn_layer"), _widened),
}


@needs_both
@pytest.mark.parametrize("name", UNHEEDED)
def test_a_case_varies_only_what_is_checked(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    field, planted, kinds, fault = UNHEEDED[name]
    genuine = dispatch.operator

    def wrong(operator: str, native: bool) -> Callable[..., Any]:
        right = genuine(operator, native)
        return right if operator != planted or not native else lambda *given, **options: fault(right, given, options)

    monkeypatch.setattr(dispatch, "operator", wrong)
    cases = (differential.case_of(5, number) for number in range(5000))
    chosen = [case for case in cases if getattr(case, field) and (case.kind in kinds or case.form in kinds)][:8]
    found = [differential.once(case) or "" for case in chosen]
    assert len(chosen) == 8 and any(found) and not any("Error at" in message for message in found), found


@needs_both
def test_dropout_in_evaluation_mode_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.functional, "dropout", lambda y, p, training: y * (1 - p))
    cases = (differential.case_of(5, number) for number in range(2000))
    assert any(differential.once(case) for case in [case for case in cases if case.dropout][:5])
