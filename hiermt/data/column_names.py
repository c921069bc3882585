"""Classifies columns by name: dates, symbols, fields of a bar, adjusted closes, row numbers."""

from __future__ import annotations

import re
import unicodedata

SYMBOL_NAMES = ("symbol", "ticker", "name")
DATE_NAMES = ("date", "datetime", "timestamp", "day")
OHLC = ("open", "high", "low", "close")
CLOSE_NAMES = ("close", "close price", "closing price", "close/last")

# NAN and NONE in capitals may be symbols.
_UNNAMED = re.compile(r"^(?:[Uu]nnamed: ?\d+(?:_level_\d+)?(?:\.\d+)?|nan|NaN|NaT|<NA>|[Nn]one|)$")
_COUNTERS = frozenset(
    """
    index idx level0 row rows rownumber rownum rowid rowno rownr no nr id num number seq sequence counter count
    record recordid recordno obs sno srno slno rn serialno serialnumber lineno line uid uuid
    """.split()  # noqa: SIM905
)
# Names of closing prices: a wide table with such a column holds the prices of one stock.
_CLOSES = frozenset(
    """
    close closeprice closingprice closelast last lastprice price settle settlement settleprice settlementprice
    prc pxlast value unadjclose
    """.split()  # noqa: SIM905
)
_BARS = frozenset(
    "open high low openprice highprice lowprice openingprice highestprice lowestprice".split()  # noqa: SIM905
)
# Fields, as a whole name or as a word of one, in any case.
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
    adj adjusted px dow market mkt mktrf riskfree portfolio std stddev median sum min max beta rf rate yield
    inflation cpi gdp momentum obv mfi cci amplitude sentiment score prediction pred range gap holiday isholiday
    notional adv yearmonth dayofyear weeknumber period session correlation bookvalue avgprice
    weights midpoint ltp nav aum cash total turn preclose epoch unix asof ignore truerange quantity
    datum fecha volumen kurs 日期 成交量 成交额 换手率 openint peratio tradestatus isst pettm pbmrq psttm pcfncfttm
    """.split()  # noqa: SIM905
)
# Levels of indices, which are not traded; a caret makes a name a symbol: ``^GSPC``.
_INDICES = frozenset(
    """
    sp500 snp500 spx500 sandp500 nasdaqcomposite nasdaq100 dowjones dowjonesindustrialaverage djia nikkei nikkei225
    ftse ftse100 ftse250 ftsemib dax30 dax40 mdax cac40 ibex35 russell1000 russell2000 russell3000 hangseng nifty
    nifty50 banknifty sensex csi300 hs300 sse50 kospi kosdaq stoxx50 stoxx600 eurostoxx50 asx200 bovespa ibovespa topix
    msciworld
    """.split()  # noqa: SIM905
)
# A name with one of these words is a field, whatever its other words.
_TELLING = frozenset(
    """
    index indices benchmark lag lagged lagging shifted rolling sma ema wma rsi macd atr bollinger stoch stochastic
    idx dates yyyymmdd gics industry pnl ret rets
    volatility timestamp datetime date unix epoch ohlc ohlcv deliverable deliverble sentiment zscore drawdown
    """.split()  # noqa: SIM905
)
# Names of two or more words that are all among these are fields: ``Typical Price``, ``open_time``, ``bid_size``.
_VOCABULARY = frozenset(
    """
    open high low close last price prices avg average mean median typical weighted true range mid bid ask size time
    day trading trade traded trades settle settlement value values number no of shares share outstanding quantity book
    pe pb ps ratio rate interest risk free yield spread upper lower band bands bb signal line std dev deviation prev
    previous pre next cumulative total sum count tx is holiday weekday level levels market cap adj adjusted int tr
    equal weight weights fx gap diff difference net gross float equity capital gains split dividend div up down
    per earnings fair rank fiscal calendar beta alpha momentum score factor target return returns hl hlc position
    """.split()  # noqa: SIM905
)
# Also symbols of stocks or funds: in capitals, beside other stocks, they are stocks.
_ALSO_SYMBOLS = frozenset("open high low day dow line".split())  # noqa: SIM905
_SYMBOLS_IN_CAPITALS = frozenset("rf nav sum max gap cash turn cci cpi rate".split())  # noqa: SIM905
_SELDOM_SYMBOLS = frozenset(
    """
    rsi atr sma ema eps pe pct oi px mid cap ret ask avg tic week year hour time idx id no row
    total nr num obs seq bid chg std beta alpha obv mfi min aum div pb mkt vix spx ndx dji djia rut dax nasdaq
    ebit ebita ebitda ev fcf roe roa roi roce wacc capex opex cogs dcf sales debt yoy ytd dxy usdx tnx irx tyx ovx
    vxn ppi pmi pce nfp sofr effr libor brent xau xag hml smb rmw umd psar kdj natr trix
    """.split()  # noqa: SIM905
)
# Also names of companies, where only the first letter is a capital.
_COMPANIES = frozenset("target gap total nasdaq".split())  # noqa: SIM905
# Something computed from an adjusted close, not the close itself.
_DERIVED = (
    r"factor|return|ret\d*d?$|change|chg|pct|percent|vol|diff|log|sma|ema|wma|ma\d+$|lag|prev|next|shift|rank|zscore|z$|"
    r"risk|mean|avg|average|median|std|rolling|max|min|norm|scaled|target|ratio|t\d+$|\d+d(ay)?s?$"
)
_MISSPELT = re.compile(r"^(?:aj|ajd|adjd|adjs|ad|ajus|adus|adjus|adjsu|ajdus)t?(?:ed)?clos(?:e|ing)(?:price)?$")
_NUMBERED = re.compile(r"^(?:sma|ema|wma|ma|rsi|macd|atr|adx|cci|roc|mom|bb|return|ret|lag|volatility|vol)\d+d?$")
_LETTERS = frozenset(("o", "h", "l", "c", "v", "vw", "n", "t"))


def clean(name: object) -> str:
    """A name without byte order marks, other invisible characters and outer blanks; empty if it is missing."""
    if name is None or name != name:
        return ""
    text = unicodedata.normalize("NFC", str(name))
    return " ".join("".join(sign for sign in text if unicodedata.category(sign) != "Cf").split())


def key(name: str) -> str:
    """The canonical form of a name: letters and digits in lower case, without a leading ``1. ``."""
    text = re.sub(r"^\d+\. ", "", clean(name)).casefold()
    return "".join(sign for sign in text if sign.isalnum())


def is_adjusted(name: str) -> bool:
    """Whether a column holds adjusted closes: ``Adj Close``, ``adjClose``, ``close_adj``, ``Adjusted`` and the like."""
    text = key(name)
    if _MISSPELT.match(text) or text in ("adj", "adjusted", "adjc", "adjcl", "cladj", "aclose", "totalreturnindex"):
        return True
    if re.search(r"unadj|nonadj|notadj", text) or re.search(_DERIVED, text):
        return False
    if "adj" not in text:
        # Chinese sources mark forward and backward adjusted prices with qfq and hfq; tr is total return.
        return not {"qfq", "hfq", "fq", "tr"}.isdisjoint(words(name)) and re.search(r"clos", text) is not None
    return re.search(r"clos|price|prc|last|cls|value|nav", text) is not None


def is_unnamed(name: str) -> bool:
    """Whether a column has no name, or only a placeholder of pandas."""
    return _UNNAMED.match(clean(name)) is not None or not key(name)


def is_counter(name: str) -> bool:
    """Whether a name is one of row numbers, or missing."""
    return is_unnamed(name) or key(name) in _COUNTERS


def is_close(name: str) -> bool:
    """Whether a name is one of closing prices, adjusted or not."""
    return key(name) in _CLOSES or is_adjusted(name) or "unadj" in key(name)


def is_field(name: str) -> bool:
    """Whether a name is one of a field and not of a stock.

    Names that may be either, such as ``OPEN`` in capitals, are not counted as fields; see :func:`may_be_symbol`.
    """
    if may_be_symbol(name):
        return False
    text, tokens = key(name), set(words(name))
    return (
        is_certain_field(name)
        or text in _OTHERS | _ALSO_SYMBOLS | _SYMBOLS_IN_CAPITALS | _SELDOM_SYMBOLS
        or (text in _INDICES and not clean(name).startswith("^"))
        or "%" in name
        or _NUMBERED.match(text) is not None
        or not (_WORDS | _TELLING).isdisjoint(tokens)
        or (len(tokens) > 1 and not tokens.isdisjoint(_VOCABULARY) and all(map(_is_vocabulary, tokens)))
        or re.match(r"adj(usted)?(open|high|low|close|volume|price)", text) is not None
    )


def _is_vocabulary(word: str) -> bool:
    return word in _VOCABULARY or word.isdigit()


def is_certain_field(name: str) -> bool:
    """Whether a name is one of a field even if the caller lists it among the stocks."""
    return not may_be_symbol(name) and (is_close(name) or key(name) in _BARS | _WORDS)


def may_be_symbol(name: str) -> bool:
    """Whether a name of a field or of row numbers is written such that it may be a symbol."""
    text, name = key(name), clean(name)
    if name.isupper():
        return text in _ALSO_SYMBOLS | _SYMBOLS_IN_CAPITALS | _SELDOM_SYMBOLS
    return text in _COMPANIES and name.istitle()


def is_in_capitals(name: str) -> bool:
    """Whether a name is written as a symbol is: ``AAPL``, ``BRK.B``, ``^GSPC``, ``0700.HK``."""
    return re.fullmatch(r"[\^$]?[A-Z0-9]+(?:[.\-=/^:][A-Z0-9]+)*", clean(name)) is not None


def is_ticker(name: str) -> bool:
    """Whether a name is written as most symbols are: five letters at most, or digits, or parts with a separator."""
    return is_in_capitals(name) and re.fullmatch(r"[\^$]?[A-Z]{1,5}|\d+|.*[.\-=/^:].*", clean(name)) is not None


def may_be_lower_symbol(name: str) -> bool:
    """Whether a name of a field may be a symbol where all stocks are in lower case."""
    return clean(name) in _ALSO_SYMBOLS


def is_seldom_symbol(name: str) -> bool:
    """Whether a name is more often a field (``RSI``, ``PE``) than a stock."""
    text, name = key(name), clean(name)
    return not name.startswith("^") and (text in _SELDOM_SYMBOLS or (text in _COMPANIES and not name.isupper()))


def words(name: str) -> list[str]:
    """The words of a name in lower case: ``adjClose`` and ``Adj. Close`` have two."""
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[^\W\d_a-zA-Z]+|\d+", clean(name))]


def is_bar_field(name: str) -> bool:
    """Whether a name is one of the fields in the column levels of a download."""
    text = key(name)
    return is_close(name) or text in _BARS | _WORDS | _OTHERS or not _WORDS.isdisjoint(words(name))


def are_letters(names: list[str]) -> bool:
    """Whether names are the letters of a bar (``o h l c v``), not symbols such as ``V`` and ``C``."""
    letters = {key(name) for name in names}
    return letters <= _LETTERS and (not all(name.isupper() for name in names) or letters >= set("ohlc"))


def field_of(name: str) -> tuple[str, str] | None:
    """Symbol and field of a name such as ``AAPL_Open`` or ``Close AAPL``; ``None`` for other names."""
    tokens = words(name)
    for at in (-1, 0):
        if len(tokens) > 1 and tokens[at] in OHLC:
            rest = tokens[:-1] if at else tokens[1:]
            return "".join(rest).removesuffix("adj").removeprefix("adj"), tokens[at]
    return None
