"""What a command says: lines through the standard library's logging, and tables within the width of the terminal."""

from __future__ import annotations

import contextlib
import io
import logging
import shutil
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from hiermt.data.optional import import_optional

log = logging.getLogger("hiermt.cli")
"""The logger of the command line: results and progress at INFO, notes at WARNING."""

_WIDEST = 10_000


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
    """A table as text; cells wrap where the terminal is narrow.

    Args:
        columns (sequence of str): headers.
        rows (sequence of sequence of str): cells.
        left (int): number of columns, from the first, that are flush left; the others are flush right. (default: ``1``)
        wide (int, optional): columns of text. (default: those of :func:`width`)

    Raises:
        ImportError: rich is not installed.
    """
    rich = {part: import_optional(f"rich.{part}", "printing tables") for part in ("box", "console", "table", "text")}
    shown = rich["table"].Table(box=rich["box"].SIMPLE_HEAD, show_edge=False, pad_edge=False)
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
