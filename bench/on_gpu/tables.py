"""Markdown tables of the record of a GPU."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Stages as README lists them: those of one line ran together.
PARTS = {
    "make gpu-first": ("build", "operators", "headline", "native", "kernels", "ncu"),
    "make gpu-check": ("tests and memcheck", "racecheck", "initcheck", "synccheck"),
    "make gpu-peers": ("pyg", "twin", "job"),
}
MOST_KERNELS = 12


def load(path: Path) -> dict[str, Any] | None:
    """The record of a GPU; ``None`` for another file."""
    found = json.loads(path.read_text())
    return found if isinstance(found, dict) and found.get("gpu") else None


def parts(folder: Path) -> list[str]:
    """The text of README: when, where and on which commit each stage last ran, then the figures of each GPU."""
    records = {path: found for path in sorted(folder.glob("*.json")) if (found := load(path)) is not None}
    text = [stages(list(records.values()))]
    for path, record in records.items():
        if not record["figures"]:
            continue
        text.append(
            f"**{record['gpu']}**, torch {record['torch']}, CUDA {record['cuda']}, float32 "
            f"(`bench/results/{path.name}`; {_where(record['figures'])}). Median by CUDA events, of graph replays "
            f"where not said otherwise; in brackets the ratio to PyG eager.\n\n{figures(record['figures'])}"
        )
        if record["kernels"]:
            text.append(kernels(record["kernels"]))
    return text


def stages(records: Sequence[dict[str, Any]]) -> str:
    """A row per command: the latest run of its stages."""
    lines = ["| command | last ran | GPU | commit | result |", "|---|---|---|---|---|"]
    for command, names in PARTS.items():
        found = [
            (record, name, record["stages"][name]) for record in records for name in names if name in record["stages"]
        ]
        if not found:
            lines.append(f"| `{command}` | not yet | | | |")
            continue
        for gpu in dict.fromkeys(record["gpu"] or "none" for record, _, _ in found):
            mine = [(name, stage) for record, name, stage in found if (record["gpu"] or "none") == gpu]
            date = max(stage["date"] for _, stage in mine)
            commits = dict.fromkeys(_commit(stage) for _, stage in mine)
            results = "; ".join(_result(name, stage) for name, stage in mine)
            lines.append(f"| `{command}` | {date} | {gpu} | {', '.join(commits)} | {results} |")
    return "\n".join(lines)


def _result(name: str, stage: dict[str, Any]) -> str:
    state = "cut" if stage["state"] == "running" else stage["state"]
    counts: dict[str, int] = {}
    for one in stage.get("counts", {}).values():
        for outcome, count in one.items():
            counts[outcome] = counts.get(outcome, 0) + count
    text = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))
    return f"{name}: {state}" + (f" ({text})" if text else "")


def _commit(stamped: dict[str, Any]) -> str:
    return stamped.get("commit") or f"sources {stamped.get('sources')}"


def _where(entries: Sequence[dict[str, Any]]) -> str:
    """Date and commit of the figures of each competitor."""
    found: dict[str, list[str]] = {}
    for one in entries:
        found.setdefault(f"{one['date'][:10]}, {_commit(one)}", []).append(one["competitor"])
    if len(found) == 1:
        return next(iter(found))
    return "; ".join(f"{', '.join(dict.fromkeys(names))}: {where}" for where, names in found.items())


def figures(entries: Sequence[dict[str, Any]]) -> str:
    """A row per case, with its required figures and a column per competitor."""
    competitors = list(dict.fromkeys(figure["competitor"] for figure in entries))
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for figure in entries:
        found.setdefault(figure["case"], {})[figure["competitor"]] = figure
    lines = ["| case | required | " + " | ".join(competitors) + " |", "|---|---|" + "---|" * len(competitors)]
    for case, row in found.items():
        required = _text(
            {k.removeprefix("required_"): v for k, v in next(iter(row.values())).items() if k.startswith("required_")}
        )
        cells = [_cell(row.get(competitor), row.get("pyg")) for competitor in competitors]
        lines.append(f"| {case} | {required} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def kernels(entries: Sequence[dict[str, Any]]) -> str:
    """The kernels of a training step that take the most time."""
    listed = sorted(entries, key=lambda one: -one["total_us"])
    lines = ["| kernel of a training step, 32 graphs | calls | us each | us in all |", "|---|---|---|---|"]
    lines += [
        f"| `{one['name']}` | {one['calls']:g} | {one['us']:.1f} | {one['total_us']:.1f} |"
        for one in listed[:MOST_KERNELS]
    ]
    calls, total = (sum(one[key] for one in listed) for key in ("calls", "total_us"))
    lines.append(f"| all {len(listed)} | {calls:g} | | {total:.1f} |")
    return "\n".join(lines)


def _cell(figure: dict[str, Any] | None, base: dict[str, Any] | None) -> str:
    if figure is None:
        return ""
    if "ms" not in figure:
        return str(figure.get("error", figure.get("skipped", "")))[:60].replace("|", "/")
    text = _text(figure)
    if base is not None and "ms" in base and figure is not base:
        text += f" (**{base['ms'] / figure['ms']:.1f}x**)"
    if figure["how"].startswith("graph"):
        return text
    return f"{text}, {figure['how'].split(' (')[0]}"


def _text(figure: dict[str, Any]) -> str:
    parts = []
    if "ms" in figure:
        ms = figure["ms"]
        parts.append(f"{ms / 1e3:,.2f} s" if ms >= 1e3 else f"{1e3 * ms:,.1f} us")
    if "stocks_per_s" in figure:
        parts.append(f"{figure['stocks_per_s'] / 1e6:.1f} M stocks/s")
    if "peak_mb" in figure:
        parts.append(f"{figure['peak_mb']:.0f} MB")
    if "gb_s" in figure:
        parts.append(f"{figure['gb_s']:,.0f} GB/s")
    if "of_copy" in figure:
        parts.append(f"{100 * figure['of_copy']:.0f} % of a copy")
    return ", ".join(parts)
