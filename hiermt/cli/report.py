"""``report.html``: one file with every picture in it, that needs no network."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hiermt.cli import figures, scores, summary
from hiermt.cli.attention import Attention
from hiermt.cli.pictures import save
from hiermt.data import WindowDataset
from hiermt.inference.hierarchical import CLASS_PROBABILITIES
from hiermt.io.checkpoint import to_json

_DPI = 110

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
img { max-width: 100%; height: auto; }
table { border-collapse: collapse; font-size: 0.875rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.2rem 0.7rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
.scroll { overflow-x: auto; max-height: 30rem; overflow-y: auto; }
.lead { background: #f3f3f3; border-left: 4px solid #0072B2; padding: 0.7rem 1rem; }
pre { font-size: 0.8rem; white-space: pre-wrap; overflow-wrap: anywhere; background: #f7f7f7; padding: 0.7rem; }
"""


@dataclass
class Report:
    """What the report shows. Parts that an evaluation without training lacks are left out.

    Attributes:
        title (str): heading.
        scores (dict): from :func:`hiermt.cli.evaluation.evaluate`.
        facts (dict): rows of the table of facts.
        symbols (sequence of str): names of the stocks.
        confusion (bytes): the picture ``confusion.png``.
        curves (bytes, optional): the picture ``curves.png``.
        unseen (bool): whether no day of the span was used in training.
        graph (WindowDataset, optional): whose edges are drawn.
        attention (list): mean attention of each convolution.
        balance (dict, optional): classes over time.
        record (dict, optional): content of ``run.json``.
    """

    title: str
    scores: dict[str, Any]
    facts: Mapping[str, Any]
    symbols: Sequence[str]
    dates: Sequence[str]
    confusion: bytes = b""
    curves: bytes | None = None
    unseen: bool = True
    graph: WindowDataset | None = None
    attention: Sequence[Attention] = ()
    balance: Mapping[str, Any] | None = None
    record: dict[str, Any] | None = None

    def html(self) -> str:
        """The whole page."""
        found, drawn = self.scores["span"], self.scores["bootstrap"]
        span = f"{found['days']:,} days, {found['first']} to {found['last']}, {found['stocks']} stocks"
        seen = (
            "which no training used" if self.unseen else "with days that the training has seen: they flatter the model"
        )
        parts = [
            f'<p class="lead">{html.escape(summary.knows(self.scores))} {summary.NO_PROFIT}</p>',
            f"<p>All figures are of {span}, {seen}. {summary.BASE_RATE} In brackets: {drawn['level']:.0%} intervals by "
            f"block bootstrap over days ({drawn['draws']} draws of blocks of {drawn['block_days']} days).</p>",
            *self._probabilities(),
            *self._decisions(),
            *self._ranking(),
            *self._groups(),
            *self._training(),
            *self._model(),
            *self._record(),
        ]
        return document(self.title, parts)

    def _probabilities(self) -> list[str]:
        columns, rows = summary.forecast_rows(self.scores)
        return [
            "<h2>Probabilities</h2>",
            "<p>Log loss and Brier score: lower is better, and only a value below that of the base rate is knowledge. "
            "AUC: the chance that a case of the event has a higher probability than one without; 0.5 is no "
            "knowledge.</p>",
            html_table(columns, rows),
            _image("Reliability", figures.reliability, self.scores),
            f"<p>{html.escape(summary.belief(self.scores))} <code>{', '.join(CLASS_PROBABILITIES)}</code> in "
            "<code>predictions.csv</code> are the probabilities of the three outcomes; <code>confidence</code> is "
            + ("the larger probability of one head alone" if summary.two_headed(self.scores) else "the largest of them")
            + ".</p>",
        ]

    def _decisions(self) -> list[str]:
        columns, rows = scores.rows(self.scores)
        lines = scores.verdict(self.scores).splitlines()
        return [
            "<h2>Decisions</h2>",
            html_table(columns, rows),
            f"<p>{'<br>'.join(map(html.escape, lines))}</p>",
            embedded("Confusion", self.confusion),
        ]

    def _ranking(self) -> list[str]:
        parts = ["<h2>Ranking of the stocks</h2>", f"<p>{html.escape(summary.ranking(self.scores))}</p>"]
        if self.scores["information_coefficient"]["days"] > 1:
            parts.append(_image("Rank information coefficient", figures.ranking, self.scores, self.dates))
        return parts

    def _groups(self) -> list[str]:
        parts = []
        for name, title in (("year", "By year"), ("symbol", "By stock")):
            rows = self.scores[f"by_{name}"]
            drawn = [_image(title, figures.by_group, rows, name)] if len(rows) > 1 else []
            parts += [f"<h2>{title}</h2>", *drawn, html_table(*_group_rows(rows, name))]
        return parts

    def _training(self) -> list[str]:
        parts = []
        if self.curves is not None:
            parts.append("<h2>Training</h2>")
            if summary.two_headed(self.scores):
                parts.append(
                    "<p>Dashed: the loss of the base rate of the same span. A model that learns nothing comes down to "
                    "it and stays.</p>"
                )
            parts.append(embedded("Losses", self.curves))
        if self.balance is not None:
            parts += ["<h2>Classes over time</h2>", _image("Classes over time", figures.balance, self.balance)]
        return parts

    def _model(self) -> list[str]:
        parts = []
        if self.graph is not None:
            edges = self.graph.edge_index, self.graph.edge_weight
            parts += ["<h2>Graph</h2>", _image("Graph", figures.graph, *edges, self.symbols)]
        if self.attention:
            drawn = _image("Mean attention of each edge", figures.attention, self.attention, self.symbols)
            parts += ["<h2>Mean attention</h2>", drawn]
            rows = _strongest(self.attention, self.symbols)
            if rows:
                columns = ("convolution", "reads", "attention", "if equal", "ratio")
                parts.append(html_table(columns, rows))
        return parts

    def _record(self) -> list[str]:
        return record_parts(self.facts, self.record)


def document(title: str, parts: Sequence[str]) -> str:
    """The page of some parts."""
    return (
        "<!DOCTYPE html>\n"
        f'<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body>\n<h1>{html.escape(title)}</h1>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def record_parts(facts: Mapping[str, Any], record: dict[str, Any] | None) -> list[str]:
    """The facts and the record of a run."""
    cells = [[name.replace("_", " "), str(value)] for name, value in facts.items()]
    parts = ["<h2>Run</h2>", html_table(("", ""), cells)]
    if record is not None:
        parts += ["<p>The content of <code>run.json</code>:</p>", f"<pre>{html.escape(to_json(record))}</pre>"]
    return parts


def _group_rows(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[tuple[str, ...], list[list[str]]]:
    columns = [name, "cases", "accuracy", "majority", "log loss", "base rate", "signal AUC", "direction AUC", "signals"]
    if rows and "ic" in rows[0]:
        columns.append("mean IC")
    cells = []
    for row in rows:
        numbers = [
            f"{row['count']:,}",
            f"{row['accuracy']:.1%}",
            f"{row['base_accuracy']:.1%}",
            f"{row['log_loss']:.4f}",
            f"{row['base_log_loss']:.4f}",
            *("" if row[key] is None else f"{row[key]:.3f}" for key in ("signal_auc", "direction_auc")),
            f"{row['signal_share']:.1%}",
        ]
        if "ic" in row:
            numbers.append("" if row["ic"] is None else f"{row['ic']:+.4f}")
        cells.append([str(row[name]), *numbers])
    return tuple(columns), cells


def _strongest(found: Sequence[Attention], symbols: Sequence[str], most: int = 5) -> list[list[str]]:
    """The edges between two stocks whose attention exceeds equal attention most."""
    rows = []
    for part in found:
        ratio = part.matrix / part.uniform.clip(1e-12)
        ratio[part.uniform == 0] = 0
        for i in range(len(symbols)):
            ratio[i, i] = 0
        for flat in ratio.argsort(axis=None)[::-1][:most]:
            target, source = divmod(int(flat), len(symbols))
            if ratio[target, source] > 0:
                numbers = (f"{matrix[target, source]:.3f}" for matrix in (part.matrix, part.uniform))
                pair = f"{symbols[target]} from {symbols[source]}"
                rows.append([part.name, pair, *numbers, f"{ratio[target, source]:.2f}"])
    return rows


def html_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table that scrolls where it is too wide."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    body = "\n".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{head}</tr>\n{body}</table></div>'


def png(draw: Callable[[Any], None]) -> bytes:
    """The bytes of a picture that `draw` writes into a file."""
    buffer = io.BytesIO()
    draw(buffer)
    return buffer.getvalue()


def _image(name: str, draw: Callable[..., Any], *arguments: Any) -> str:
    return embedded(name, png(lambda file: save(draw(*arguments), file, _DPI)))


def embedded(name: str, png: bytes) -> str:
    """A picture in the page itself."""
    data = base64.b64encode(png).decode("ascii")
    return f'<p><img alt="{html.escape(name)}" src="data:image/png;base64,{data}"></p>'
