"""Price tables for the tests of data and command line, and calls that must be silent or fail."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

from hiermt.cli.main import USER_ERROR, main
from hiermt.data import FeatureTable, Prices, read_prices


def quiet(source: Any, **options: Any) -> Prices:
    """Reads prices; a warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return read_prices(source, **options)


def bars(stocks: int, days: int, seed: int = 0) -> Any:
    """A long table of the random bars of correlated stocks ``S0``, ``S1`` ..."""
    import pandas as pd

    random = np.random.default_rng(seed)
    close = 50 * np.exp(np.cumsum(random.normal(0, 0.01, days) + random.normal(0, 0.01, (stocks, days)), axis=1))
    opened = close * np.exp(random.normal(0, 0.005, close.shape))
    columns = {
        "Symbol": np.repeat([f"S{i}" for i in range(stocks)], days),
        "Date": np.tile(pd.bdate_range("2020-01-01", periods=days), stocks),
        "Open": opened.ravel(),
        "High": np.maximum(close, opened).ravel() * 1.01,
        "Low": np.minimum(close, opened).ravel() * 0.99,
        "Close": close.ravel(),
    }
    return pd.DataFrame(columns)


def ready_features(table: FeatureTable) -> Any:
    """A feature table in the published long form."""
    import pandas as pd

    ready = pd.DataFrame(table.values.flatten(0, 1).numpy(), columns=list(table.names))
    ready.insert(0, "Symbol", np.repeat(table.symbols, table.num_days))
    ready.insert(1, "Date", np.tile(table.dates, len(table.symbols)))
    ready.insert(2, "Close", table.close.flatten().numpy())
    return ready


def decided(output: str) -> list[list[str]]:
    """The rows of the table that ``predict`` prints, cell by cell."""
    lines = output.splitlines()
    start = next(i for i, line in enumerate(lines) if line and set(line) <= set("─-")) + 1
    return [line.split() for line in lines[start : lines.index("", start)]]


def fails(capsys: pytest.CaptureFixture[str], *arguments: object, match: str = "", silent: bool = True) -> str:
    """Runs a command that must end with exit code 2 and one line on stderr, which is returned; no other output."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == USER_ERROR
    output = capsys.readouterr()
    lines = [line for line in output.err.splitlines() if not line.startswith("note:")]
    assert len(lines) == 1 and not (silent and output.out), output
    assert lines[0].startswith("error: ") and match in lines[0]
    return lines[0]
