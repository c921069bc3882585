"""What the name of a column says: dates, symbols, fields of a bar, adjusted closes, row counters."""

from __future__ import annotations

import re
import unicodedata

SYMBOL_NAMES = ("symbol", "ticker", "name")
DATE_NAMES = ("date", "datetime", "timestamp", "day")
OHLC = ("open", "high", "low", "close")
CLOSE_NAMES = ("close", "close price", "closing price", "close/last")

_UNNAMED = re.compile(r"^(?:unnamed: ?\d+(?:_level_\d+)?(?:\.\d+)?|nan|none|)$", re.IGNORECASE)
_COUNTERS = frozenset(
    """
    index idx level0 row rows rownumber rownum rowid rowno rownr no nr id num number seq sequence counter count
    record recordid recordno obs sno srno serialno serialnumber lineno line
    """.split()  # noqa: SIM905
)
# A close, or what stands for one: a table with such a column holds the prices of one stock.
_CLOSES = frozenset(
    """
    close closeprice closingprice closelast last lastprice price settle settlement settleprice settlementprice
    prc pxlast value unadjclose
    """.split()  # noqa: SIM905
)
_BARS = frozenset(
    "open high low openprice highprice lowprice openingprice highestprice lowestprice".split()  # noqa: SIM905
)
# Not a price of a stock, as a whole name or as a word of one, whatever the case.
_WORDS = frozenset(
    """
    volume volumes vol vwap twap dividend dividends split splits turnover trades transactions return returns
    change chg pct percent amount openinterest marketcap mktcap capitalization repaired
    """.split()  # noqa: SIM905
)
_OTHERS = frozenset(
    """
    bid ask mid spread average avg mean wap ret logret prevclose previousclose factor shares sharesoutstanding
    oi eps pe weight capitalgains stocksplits splitcoefficient splitfactor splitratio divcash dividendamount
    numberoftrades tradecount tradescount quoteassetvolume macd signal label target sector industry country
    exchange currency isin cusip sedol permno gvkey year month quarter week weekday dayofweek hour minute
    datetime timestamp date tic adjfactor adjustmentfactor volatility volumeadj marketcapitalization cap float
    adj adjusted px dow
    """.split()  # noqa: SIM905
)
# Words that are symbols of stocks or funds as well: a stock where they stand in capitals beside other stocks.
_ALSO_SYMBOLS = frozenset("open high low day dow line".split())  # noqa: SIM905
_SELDOM_SYMBOLS = frozenset(
    """
    rsi atr sma ema eps pe pct oi px mid cap ret ask avg tic week year hour time idx id no row
    """.split()  # noqa: SIM905
)
_NUMBERED = re.compile(r"^(?:sma|ema|wma|ma|rsi|macd|atr|adx|cci|roc|mom|bb|return|ret|lag|volatility|vol)\d+d?$")
_LETTERS = frozenset(("o", "h", "l", "c", "v", "vw", "n", "t"))


def clean(name: object) -> str:
    """A name as it is meant: without byte order marks, invisible signs and blanks at its ends; empty if it is none."""
    if name is None or name != name:
        return ""
    text = unicodedata.normalize("NFC", str(name))
    return " ".join("".join(sign for sign in text if unicodedata.category(sign) != "Cf").split())


def key(name: str) -> str:
    """What two spellings of one name share: its letters and digits in lower case, without a number before a dot."""
    text = re.sub(r"^\d+\. ", "", clean(name)).casefold()
    return "".join(sign for sign in text if sign.isalnum())


def is_adjusted(name: str) -> bool:
    """Whether a column holds adjusted closes: ``Adj Close``, ``adjClose``, ``close_adj``, ``Adjusted`` and the like."""
    text = key(name)
    if re.search(r"unadj|nonadj|notadj", text) or "adj" not in text:
        return False
    if re.search(r"factor|return|ret$|change|chg|pct|percent|vol|diff|log", text):
        return False
    return text in ("adj", "adjusted") or re.search(r"clos|price|prc|last|cls", text) is not None


def is_unnamed(name: str) -> bool:
    """Whether a column has no name, or the one that pandas makes up for it."""
    return _UNNAMED.match(clean(name)) is not None or not key(name)


def is_counter(name: str) -> bool:
    """Whether a name is that of row numbers."""
    return is_unnamed(name) or key(name) in _COUNTERS


def is_close(name: str) -> bool:
    """Whether a name is that of closing prices, adjusted or not, and so of no stock."""
    return key(name) in _CLOSES or is_adjusted(name) or "unadj" in key(name)


def is_field(name: str) -> bool:
    """Whether a name is that of a field of a table, and so of no stock.

    ``OPEN`` and a few others, in capitals, may be either; they are not counted as fields.
    """
    text, tokens = key(name), words(name)
    if may_be_symbol(name):
        return False
    return (
        is_close(name)
        or text in _BARS | _WORDS | _OTHERS | _ALSO_SYMBOLS | _SELDOM_SYMBOLS
        or _NUMBERED.match(text) is not None
        or not _WORDS.isdisjoint(tokens)
        or re.match(r"adj(usted)?(open|high|low|close|volume|price)", text) is not None
    )


def may_be_symbol(name: str) -> bool:
    """Whether a name is that of a field or of row numbers, but in capitals, in which it is a symbol as well."""
    return key(name) in _ALSO_SYMBOLS | _SELDOM_SYMBOLS and clean(name).isupper()


def is_seldom_symbol(name: str) -> bool:
    """Whether a name is more often that of a field (``RSI``, ``PE``) than that of a stock."""
    return key(name) in _SELDOM_SYMBOLS


def words(name: str) -> list[str]:
    """The words of a name in lower case: ``adjClose`` and ``Adj. Close`` have two."""
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[^\W\d_a-zA-Z]+|\d+", clean(name))]


def is_bar_field(name: str) -> bool:
    """Whether a name is that of a field of a bar, as the levels of a download hold them."""
    text = key(name)
    return is_close(name) or text in _BARS | _WORDS | _OTHERS or not _WORDS.isdisjoint(words(name))


def are_letters(names: list[str]) -> bool:
    """Whether names are the letters of a bar (``o h l c v``), not symbols such as ``V`` and ``C``."""
    letters = {key(name) for name in names}
    return letters <= _LETTERS and (not all(name.isupper() for name in names) or letters >= set("ohlc"))


def field_of(name: str) -> tuple[str, str] | None:
    """Symbol and field of a name such as ``AAPL_Open`` or ``Close AAPL``; ``None`` if it is not made of the two."""
    tokens = words(name)
    for at in (-1, 0):
        if len(tokens) > 1 and tokens[at] in OHLC:
            rest = tokens[:-1] if at else tokens[1:]
            return "".join(rest).removesuffix("adj").removeprefix("adj"), tokens[at]
    return None
