"""What a command says: lines through the standard library's logging, and tables within the width of the terminal."""

from __future__ import annotations

import contextlib
import io
import logging
import shutil
import sys
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from hiermt.data.optional import import_optional

log = logging.getLogger("hiermt.cli")
"""The logger of the command line: results and progress at INFO, notes at WARNING."""

_WIDEST = 10_000
_FEW_ROWS = 12


@contextlib.contextmanager
def logging_to_streams(json: bool) -> Iterator[None]:
    """Prints what is logged, and warnings as notes, while the block runs.

    INFO goes to the standard output, or to stderr where the standard output is for JSON. WARNING goes to stderr.
    """
    handler = _Handler(json)
    before = log.level, log.propagate
    log.setLevel(logging.INFO)
    log.propagate = False
    log.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _note
            yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before[0])
        log.propagate = before[1]


class _Handler(logging.Handler):
    def __init__(self, json: bool) -> None:
        super().__init__()
        self.json = json

    def emit(self, record: logging.LogRecord) -> None:
        """Writes at once: whoever reads the pipe sees an epoch when it ends. A failed write ends the command."""
        noted = record.levelno >= logging.WARNING
        stream = sys.stderr if noted or self.json else sys.stdout
        text = record.getMessage()
        stream.write(f"note: {' '.join(text.split())}\n" if noted else f"{fits_encoding(text, stream)}\n")
        stream.flush()


def _note(message: Warning | str, *_: Any, **__: Any) -> None:
    log.warning("%s", message)


def fits_encoding(text: str, stream: Any = None) -> str:
    """The text, with plain characters in place of those of this module that the stream cannot encode."""
    encoding = getattr(stream or sys.stdout, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return text.replace("±", "+/-").replace("─", "-").replace("…", "...")
    return text


def is_terminal() -> bool:
    """Whether both streams are a terminal; a bar is for one alone."""
    return all(stream is not None and stream.isatty() for stream in (sys.stdout, sys.stderr))


def width() -> int:
    """Columns of the terminal; without one, those of ``COLUMNS``, else as many as the text needs."""
    return shutil.get_terminal_size((80, 24)).columns if is_terminal() else shutil.get_terminal_size((_WIDEST, 24))[0]


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1, wide: int | None = None) -> str:
    """A table as text. Where the terminal is too narrow, a few rows become blocks, and the cells of more rows wrap.

    Args:
        columns (sequence of str): headers.
        rows (sequence of sequence of str): cells.
        left (int): number of columns, from the first, that are flush left; the others are flush right. (default: ``1``)
        wide (int, optional): columns of text. (default: those of :func:`width`)

    Raises:
        ImportError: rich is not installed.
    """
    if len(rows) <= _FEW_ROWS and _natural_width(columns, rows) > (wide or width()):
        return _blocks(columns, rows)
    rich = {part: import_optional(f"rich.{part}", "printing tables") for part in ("box", "console", "table", "text")}
    shown = rich["table"].Table(box=rich["box"].SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for i, name in enumerate(columns):
        shown.add_column(rich["text"].Text(name), justify="left" if i < left else "right", overflow="fold")
    for row in rows:
        shown.add_row(*(rich["text"].Text(cell) for cell in row))
    buffer = io.StringIO()
    console = rich["console"].Console(
        file=buffer, width=wide or width(), color_system=None, legacy_windows=False, force_terminal=False
    )
    console.print(shown)
    return "\n".join(line.rstrip() for line in buffer.getvalue().rstrip("\n").split("\n"))


def prose(text: str) -> str:
    """A paragraph, broken between words to the width of the terminal."""
    return textwrap.fill(text, width()) if width() < _WIDEST else text


def _natural_width(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    """Columns of text that a table needs without wrapping, two between cells."""
    widest = [max(map(len, column)) for column in zip(columns, *rows, strict=True)] if rows else list(map(len, columns))
    return sum(widest) + 2 * (len(widest) - 1)


def _blocks(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Each row as a block: its first cell, then a line for each of the others."""
    most = max(map(len, columns[1:]), default=0)
    lines = []
    for first, *cells in rows:
        lines.append(f"{columns[0]} {first}".strip())
        lines += [f"  {name:<{most}}  {cell}" for name, cell in zip(columns[1:], cells, strict=True) if cell]
    return "\n".join(lines)
