"""Trainings through the command line, without the figures of their reports, which take longer than the trainings."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hiermt.cli import report


@pytest.fixture(scope="session", autouse=True)
def _figures_named_only() -> Iterator[None]:
    """Names a figure of a report in place of drawing it; test_report.py draws."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "_image", lambda name, *_: f"<p>{name}</p>")
        yield
