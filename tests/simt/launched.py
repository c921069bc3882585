"""Names the kernels that no test of this folder launched; a run of all of them fails by itself (support.every_kernel).

    HIERMT_SIMT_LAUNCHES=FILE pytest tests/simt
    PYTHONPATH=.:tests python -m simt.launched FILE

Each kernel of the program is an instantiation that the host code can launch, as far as its types tell. One that no
test reaches lacks a test or cannot be reached: then it has no place in the code. The exit status is 1 if there is one.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from ptx import sources
from simt import program


def never_launched(kernels: Mapping[int, str], places: Iterable[int]) -> list[str]:
    """Names of `kernels`, by their places in the program, of which no place was launched."""
    launched = {kernels[place] for place in places}
    return sorted(set(kernels.values()) - launched)


def missing(kernels: Mapping[int, str], record: Path) -> list[str]:
    """The same for the places that the harness has recorded."""
    return never_launched(kernels, (int(line, 16) for line in record.read_text().split()))


def main(arguments: list[str]) -> int:
    """The command line."""
    if len(arguments) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    if program.compiler() is None:
        print("needs g++ on x86-64", file=sys.stderr)
        return 0
    kernels = sources.addresses()
    left = missing(kernels, Path(arguments[0]))
    print(f"{len(set(kernels.values())) - len(left)} kernels launched, {len(left)} never", *left, sep="\n  ")
    return int(bool(left))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
