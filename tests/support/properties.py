"""Hypothesis where it is installed; elsewhere its tests are skipped and all others of the same file run."""

from __future__ import annotations

from typing import Any

import pytest

__all__ = ["HealthCheck", "given", "settings", "st"]

try:
    from hypothesis import HealthCheck, given, settings
    from hypothesis import strategies as st
except ImportError:

    class _Anything:
        """Takes the place of strategies, which only a test that is skipped would draw from."""

        def __getattr__(self, name: str) -> _Anything:
            return self

        def __call__(self, *args: Any, **kwargs: Any) -> _Anything:
            return self

    HealthCheck = st = _Anything()

    def given(*args: Any, **kwargs: Any) -> Any:
        return pytest.mark.skip(reason="needs hypothesis")

    def settings(*args: Any, **kwargs: Any) -> Any:
        return lambda test: test
