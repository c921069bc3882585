"""Tables of the figures of one machine, and a comparison of two runs.

python bench/report.py A.json              the table of a run
python bench/report.py A.json B.json       B against A; exits 1 if anything is more than 5 % slower, or, of two files
                                           of bench/counts.py, if a pass has more than 3 % more instructions
python bench/report.py --readme            writes the tables of bench/results into README.md and docs/benchmarks.md, and
                                           the picture docs/speed.svg
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SLOWER = 1.05
MORE_INSTRUCTIONS = 1.03
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
GPU_BEGIN, GPU_END = "<!-- gpu:begin -->", "<!-- gpu:end -->"
_KEY = ("case", "direction", "competitor")


def load(path: Path) -> list[dict[str, Any]]:
    """The records of a file; empty for the one record of a GPU, see ``on_gpu/tables.py``."""
    found = json.loads(path.read_text())
    return found if isinstance(found, list) else []


def records(benchmark: dict[str, Any]) -> list[dict[str, Any]]:
    """Median and quartiles in milliseconds and the extra info of each benchmark in a pytest-benchmark file."""
    return [
        {
            **entry["extra_info"],
            "median_ms": 1e3 * entry["stats"]["median"],
            "q1_ms": 1e3 * entry["stats"]["q1"],
            "q3_ms": 1e3 * entry["stats"]["q3"],
            "rounds": entry["stats"]["rounds"],
            "date": benchmark["datetime"][:10],
        }
        for entry in benchmark["benchmarks"]
    ]


def merge(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Old and new records; a new one replaces that of the same case, pass and competitor."""
    kept = {tuple(r[k] for k in _KEY): r for r in old} | {tuple(r[k] for k in _KEY): r for r in new}
    return list(kept.values())


def table(entries: list[dict[str, Any]]) -> str:
    """Markdown: a row per case and pass, a column per competitor, the ratio to PyG eager of the same run."""
    competitors = list(dict.fromkeys(entry["competitor"] for entry in entries))
    groups: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for entry in entries:
        groups.setdefault((entry["case"], entry["direction"]), {})[entry["competitor"]] = entry
    lines = [
        "| case | pass | " + " | ".join(competitors) + " |",
        "|---|---|" + "---|" * len(competitors),
    ]
    for (case, direction), found in groups.items():
        base = found.get("pyg")
        cells = [_cell(found.get(competitor), base) for competitor in competitors]
        lines.append(f"| {case} | {direction} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(entry: dict[str, Any] | None, base: dict[str, Any] | None) -> str:
    if entry is None:
        return ""
    text = f"{entry['median_ms']:.3g} ms, {1e3 * entry['stocks'] / entry['median_ms']:,.0f}/s"
    if base is not None and entry is not base:
        text += f" (**{base['median_ms'] / entry['median_ms']:.1f}x**)"
    return text


def compare(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> int:
    """Prints each change; returns 1 if a figure is more than 5 % slower."""
    old = {tuple(r[k] for k in _KEY): r["median_ms"] for r in before}
    worst = 0
    for record in after:
        key = tuple(record[k] for k in _KEY)
        if key not in old:
            continue
        ratio = record["median_ms"] / old[key]
        mark = "slower" if ratio > SLOWER else "faster" if ratio < 1 / SLOWER else "same"
        worst |= ratio > SLOWER
        print(f"{' '.join(key):45} {old[key]:9.3f} -> {record['median_ms']:9.3f} ms  {ratio:5.2f}  {mark}")
    return int(worst)


def load_counts(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The passes of a file of ``bench/counts.py``; empty for another file."""
    found = json.loads(path.read_text())
    return found.get("counts", {}) if isinstance(found, dict) else {}


def compare_counts(before: dict[str, list[dict[str, Any]]], after: dict[str, list[dict[str, Any]]]) -> int:
    """Prints each pass and the kernels that changed; returns 1 if a pass has more than 3 % more instructions."""
    worst = 0
    for name in after:
        if name not in before:
            continue
        old, new = ({r["kernel"]: r["instructions"] for r in records[name]} for records in (before, after))
        ratio = sum(new.values()) / max(sum(old.values()), 1)
        worst |= ratio > MORE_INSTRUCTIONS
        mark = "more" if ratio > MORE_INSTRUCTIONS else "less" if ratio < 1 / MORE_INSTRUCTIONS else "same"
        print(f"{name:52} {sum(old.values()) / 1e6:9.2f} -> {sum(new.values()) / 1e6:9.2f} M  {ratio:5.2f}  {mark}")
        for kernel in dict.fromkeys([*old, *new]):
            was, now = old.get(kernel, 0), new.get(kernel, 0)
            if abs(now - was) > (MORE_INSTRUCTIONS - 1) * was:
                print(f"  {kernel[:50]:50} {was / 1e6:9.2f} -> {now / 1e6:9.2f} M")
    return int(worst)


def write_readme() -> int:
    """Writes the first cases into README.md, all of them into docs/benchmarks.md, and the picture."""
    import picture
    from on_gpu import tables

    from hiermt.io.files import atomic_write

    root = HERE.parent
    short, whole = [], []
    for path in sorted((HERE / "results").glob("*.json")):
        entries = load(path)
        if not entries or "case" not in entries[0]:
            continue
        first = entries[0]
        where = first["cpu"] if first["device"] == "cpu" else first["device"]
        isa = next((e["isa"] for e in entries if e["competitor"] == "native"), None)
        head = (
            f"**{where}**, {first['cores']} cores, {isa or 'GPU'}, torch {first['torch']}, float32 "
            f"(`bench/results/{path.name}`, {first['date']}). Median; in brackets the ratio to PyG eager, each in a "
            "process of its own."
        )
        chosen = [e for e in entries if e["case"] in picture.CASES and e["competitor"] in picture.COMPETITORS]
        short.append(f"{head}\n\n{table(chosen)}")
        whole.append(f"{head}\n\n{table(entries)}")
        if first["device"] == "cpu":
            (root / "docs" / "speed.svg").write_text(picture.svg(entries, picture.title(first)), encoding="utf-8")
    texts = {
        root / "README.md": [(BEGIN, END, short), (GPU_BEGIN, GPU_END, tables.parts(HERE / "results"))],
        root / "docs" / "benchmarks.md": [(BEGIN, END, whole)],
    }
    for path, marks in texts.items():
        text = path.read_text(encoding="utf-8")
        for begin, end, parts in marks:
            text = _between(text, begin, end, parts)
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return 0


def _between(text: str, begin: str, end: str, parts: list[str]) -> str:
    start, stop = text.index(begin) + len(begin), text.index(end)
    return text[:start] + "\n" + "\n\n".join(parts) + "\n" + text[stop:]


def main(arguments: list[str]) -> int:
    """The command line."""
    if arguments == ["--readme"]:
        return write_readme()
    if len(arguments) == 1:
        print(table(load(Path(arguments[0]))))
        return 0
    if len(arguments) == 2 and load_counts(Path(arguments[0])):
        return compare_counts(load_counts(Path(arguments[0])), load_counts(Path(arguments[1])))
    if len(arguments) == 2:
        return compare(load(Path(arguments[0])), load(Path(arguments[1])))
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
