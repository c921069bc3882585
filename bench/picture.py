"""Draws how fast the first cases are, from the records of a machine.

python bench/picture.py RESULTS.json OUT.svg
"""

from __future__ import annotations

import json
import math
import sys
from html import escape
from pathlib import Path
from typing import Any

# The rows that README shows.
CASES = {
    "stocks-3200": "32 graphs of 100 stocks, GATv2",
    "stocks-100": "100 stocks, GATv2",
    "gcn-3200": "32 graphs of 100 stocks, GCN",
}
COMPETITORS = {"pyg": ("PyG", "#b0b7c3"), "twin": ("hiermt, PyTorch twin", "#8fb3dd"), "native": ("hiermt", "#1f5fa8")}
WIDTH, BAR, GAP, LEFT, RIGHT, TOP = 760, 15, 3, 250, 90, 44


def svg(entries: list[dict[str, Any]], heading: str) -> str:
    """Bars of the median times, on a logarithmic axis; each says how many times as fast as PyG it is."""
    times = {(e["case"], e["direction"], e["competitor"]): e["median_ms"] for e in entries}
    rows = [
        (f"{label}, {direction}", {who: times[case, direction, who] for who in COMPETITORS})
        for case, label in CASES.items()
        for direction in ("forward", "training")
        if all((case, direction, who) in times for who in COMPETITORS)
    ]
    shown = [time for _, found in rows for time in found.values()]
    low, high = math.floor(math.log10(min(shown))), math.ceil(math.log10(max(shown)))
    scale = (WIDTH - LEFT - RIGHT) / (high - low)
    step = len(COMPETITORS) * (BAR + GAP) + 12
    height = TOP + len(rows) * step + 24
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        f'<text x="10" y="16" font-size="13" font-weight="bold">{escape(heading)}</text>',
    ]
    at = LEFT
    for label, color in COMPETITORS.values():
        lines.append(f'<rect x="{at}" y="24" width="10" height="10" fill="{color}"/>')
        lines.append(f'<text x="{at + 14}" y="33">{escape(label)}</text>')
        at += 30 + 7 * len(label)
    for power in range(low, high + 1):
        x = LEFT + (power - low) * scale
        lines.append(f'<line x1="{x}" y1="{TOP}" x2="{x}" y2="{height - 20}" stroke="#ddd"/>')
        lines.append(f'<text x="{x}" y="{height - 6}" text-anchor="middle">{10.0**power:g} ms</text>')
    for i, (label, found) in enumerate(rows):
        y = TOP + i * step + 4
        lines.append(f'<text x="{LEFT - 8}" y="{y + 30}" text-anchor="end">{escape(label)}</text>')
        for k, (who, time) in enumerate(found.items()):
            top, length = y + k * (BAR + GAP), (math.log10(time) - low) * scale
            ratio = "" if who == "pyg" else f" ({found['pyg'] / time:.0f}x)"
            color = COMPETITORS[who][1]
            lines.append(f'<rect x="{LEFT}" y="{top}" width="{length:.1f}" height="{BAR}" fill="{color}"/>')
            lines.append(f'<text x="{LEFT + length + 5:.1f}" y="{top + 12}">{time:.3g} ms{ratio}</text>')
    return "\n".join([*lines, "</svg>", ""])


def title(entry: dict[str, Any]) -> str:
    """The machine of a record."""
    where = entry["cpu"] if entry["device"] == "cpu" else entry["device"]
    return f"Time of a call, {where}, {entry['cores']} cores, float32"


def main(arguments: list[str]) -> int:
    """The command line."""
    if len(arguments) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    entries = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    Path(arguments[1]).write_text(svg(entries, title(entries[0])), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
