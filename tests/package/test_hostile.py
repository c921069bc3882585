"""Every class of hostile input and of faults has a test, and the table of the documentation says which."""

from __future__ import annotations

from support import hostile


def test_every_class_has_a_test() -> None:
    covered = {name for one in hostile.marked() for name in one.classes}
    assert covered >= set(hostile.CLASSES), f"without a test: {sorted(set(hostile.CLASSES) - covered)}"
    assert covered <= set(hostile.CLASSES), f"unknown: {sorted(covered - set(hostile.CLASSES))}"


def test_the_table_is_that_of_the_markers() -> None:
    assert hostile.PAGE.read_text("utf-8") == hostile.page(), "run: PYTHONPATH=tests python -m support.hostile"
