"""Draws the layers of the package from its imports: ``python docs/pictures.py`` writes ``_static/layers.svg``."""

from __future__ import annotations

import ast
from collections import defaultdict
from html import escape
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "hiermt"
# What each package is for. A package that is not here fails the build of the documentation.
PURPOSE = {
    "cli": "command line",
    "inference": "histories, live",
    "io": "checkpoints, foreign models",
    "training": "one loop, tasks, resume",
    "nn": "modules",
    "data": "prices to batches",
    "functional": "public functions",
    "graph": "edges, CSR, cache",
    "ops": "autograd, fake, autocast rules",
    "windows": "windows of one series",
    "presence": "stocks that come and go",
    "pyg": "the models on PyG's convolutions",
    "native": "binary, choice of backend",
    "reference": "pure-PyTorch twin",
    "testing": "tolerances, PyG models",
}
# Packages of which single modules stand below a package that imports the rest: drawn dashed, and not ranked by.
DASHED = {("nn", "io")}  # models save themselves by io.checkpoint; io.interop makes models
WIDTH, HEIGHT, GAP, MARGIN = 190, 46, 26, 20


def package_of(module: str) -> str | None:
    """``hiermt.nn.cell`` is of ``nn``; private modules at the root belong to no package."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[0] == "hiermt" and not parts[1].startswith("_") else None


def imports() -> dict[str, set[str]]:
    """The packages that each package imports when it is imported."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in sorted(PACKAGE.rglob("*.py")):
        own = package_of(".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"))
        if own is None:
            continue
        found[own]
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if not isinstance(node, ast.ImportFrom) or not node.module:
                continue
            names = [node.module]
            if node.module == "hiermt":
                names = [f"hiermt.{alias.name}" for alias in node.names]
            found[own] |= {name for name in map(package_of, names) if name in PURPOSE and name != own}
    return found


def ranks(edges: dict[str, set[str]]) -> dict[str, int]:
    """Longest way down from each package; a circle raises."""

    def rank(name: str, way: tuple[str, ...]) -> int:
        if name in way:
            raise ValueError(f"the packages import each other: {' -> '.join((*way, name))}")
        return 1 + max((rank(to, (*way, name)) for to in edges.get(name, ()) if (name, to) not in DASHED), default=-1)

    return {name: rank(name, ()) for name in edges}


def svg(edges: dict[str, set[str]]) -> str:
    """Boxes in rows by rank; an arrow points from a package to one that it imports, unless another leads there."""
    by_rank: dict[int, list[str]] = defaultdict(list)
    for name, rank in ranks(edges).items():
        by_rank[rank].append(name)
    top, widest = max(by_rank), max(map(len, by_rank.values()))
    total = widest * (WIDTH + GAP) - GAP + 2 * MARGIN
    place: dict[str, tuple[float, float]] = {}
    for rank, names in by_rank.items():
        left = (total - len(names) * (WIDTH + GAP) + GAP) / 2
        for i, name in enumerate(sorted(names)):
            place[name] = left + i * (WIDTH + GAP), MARGIN + (top - rank) * (HEIGHT + 2 * GAP)
    height = MARGIN * 2 + (top + 1) * HEIGHT + top * 2 * GAP
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total} {height}" font-family="sans-serif">',
        '<defs><marker id="a" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 8 4 0 8z" fill="#888"/></marker></defs>',
        f'<rect width="{total}" height="{height}" fill="white"/>',
    ]
    for name, targets in sorted(edges.items()):
        near = [target for target in targets if (name, target) not in DASHED]
        for target in sorted(targets.difference(*(_reached(edges, each) for each in near))):
            (x, y), (to_x, to_y) = place[name], place[target]
            dash = ' stroke-dasharray="4 3"' if (name, target) in DASHED else ""
            begin, end = (y + HEIGHT, to_y - 2) if y < to_y else (y, to_y + HEIGHT + 2)
            lines.append(
                f'<line x1="{x + WIDTH / 2}" y1="{begin}" x2="{to_x + WIDTH / 2}" y2="{end}" stroke="#888"{dash} '
                'marker-end="url(#a)"/>'
            )
    for name, (x, y) in sorted(place.items()):
        middle = x + WIDTH / 2
        lines += [
            f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="6" fill="#eef3fb" stroke="#3b6ea5"/>',
            f'<text x="{middle}" y="{y + 19}" text-anchor="middle" font-size="14" font-weight="bold">{name}</text>',
            f'<text x="{middle}" y="{y + 36}" text-anchor="middle" font-size="11">{escape(PURPOSE[name])}</text>',
        ]
    return "\n".join([*lines, "</svg>", ""])


def _reached(edges: dict[str, set[str]], start: str) -> set[str]:
    found: set[str] = set()
    waiting = [(start, name) for name in edges.get(start, ())]
    while waiting:
        edge = waiting.pop()
        if edge not in DASHED and edge[1] not in found:
            found.add(edge[1])
            waiting += [(edge[1], name) for name in edges.get(edge[1], ())]
    return found


def write(folder: Path) -> Path:
    """Writes the picture; returns its path."""
    edges = imports()
    unknown = sorted(edges.keys() - PURPOSE.keys())
    if unknown:
        raise ValueError(f"docs/pictures.py: say in PURPOSE what the package {unknown[0]} is for")
    folder.mkdir(exist_ok=True)
    target = folder / "layers.svg"
    target.write_text(svg({name: set(edges[name]) for name in sorted(edges)}), encoding="utf-8")
    return target


if __name__ == "__main__":
    print(write(Path(__file__).resolve().parent / "_static"))
