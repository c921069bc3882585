"""Real prices for a first run: 20 large US stocks from the package skfolio."""

from __future__ import annotations

from pathlib import Path

from hiermt.data.optional import find_optional
from hiermt.data.prices import Prices, read_prices

LIMITS = (
    "Prices: 20 S&P 500 stocks from the skfolio package, 1990 to 2022, closing prices only. They were picked among "
    "companies that still exist, so they did better than the market of their time (survivorship bias). Nothing here "
    "promises a profit."
)
"""Limits of these prices, to be stated with every figure computed from them."""

SP500_SECTORS = {
    "AAPL": "Information Technology",
    "AMD": "Information Technology",
    "BAC": "Financials",
    "BBY": "Consumer Discretionary",
    "CVX": "Energy",
    "GE": "Industrials",
    "HD": "Consumer Discretionary",
    "JNJ": "Health Care",
    "JPM": "Financials",
    "KO": "Consumer Staples",
    "LLY": "Health Care",
    "MRK": "Health Care",
    "MSFT": "Information Technology",
    "PEP": "Consumer Staples",
    "PFE": "Health Care",
    "PG": "Consumer Staples",
    "RRC": "Energy",
    "UNH": "Health Care",
    "WMT": "Consumer Staples",
    "XOM": "Energy",
}
"""GICS sector of each of the stocks of :func:`load_sp500`."""


def load_sp500() -> Prices:
    """Closing prices of 20 S&P 500 stocks on 8,313 days, 1990-01-02 to 2022-12-28, adjusted for splits and dividends.

    Reads the data file in the installed skfolio package without importing skfolio, so its dependencies are not needed.
    Nothing is downloaded. See :data:`LIMITS`.

    Raises:
        ImportError: skfolio is not installed; the message gives the command.
        FileNotFoundError: the installed version of skfolio lacks the file.
    """
    return read_prices(sp500_path())


def sp500_path() -> Path:
    """The file that :func:`load_sp500` reads, a gzipped wide CSV."""
    folders = find_optional("skfolio", "reading the S&P 500 prices").submodule_search_locations or [""]
    path = Path(folders[0]) / "datasets" / "data" / "sp500_dataset.csv.gz"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not in this version of skfolio; run: pip install --no-deps 'skfolio>=0.4'")
    return path
