"""Native kernels against the twin and against PyG in float64, on random problems of the whole family.

    make fuzz SECONDS=600 SEED=7

A problem that fails is made smaller as long as it fails, and written as a test beside this file. By hand::

    PYTHONPATH=tests python -m fuzz.differential --seconds 600 --seed 7 [--case 123]
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from fuzz.case import FUNCTIONS, Case, draw, simpler
from fuzz.compare import bitwise, judge
from fuzz.functions import FunctionProblem
from fuzz.models import ModelProblem

FOLDER = Path(__file__).parent
# An argument of leaky_relu that rounds across zero gets the other slope: a fault of a coarse dtype has to show with
# other numbers, too.
AGAIN = 3
# What runs on native operators alone. PyTorch's own linears give other bits with another number of threads.
BITWISE = ("TGCN_HierarchicalMT", *FUNCTIONS)


def once(case: Case) -> str | None:
    """What is wrong with a case: a message, or ``None``."""
    torch.set_num_threads(case.threads)
    try:
        problem = (FunctionProblem if case.kind in FUNCTIONS else ModelProblem)(case)
        oracle = problem.evaluate("oracle")
        twin, native = problem.evaluate("reference"), problem.evaluate("native")
        found = judge(native, twin, oracle, case.scale <= 1, getattr(torch, case.computed))
        if found is not None or case.kind not in BITWISE:
            return found
        torch.set_num_threads(case.threads % 3 + 1)
        return bitwise(native, problem.evaluate("native"))
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__} at {Path(where.filename).name}, {where.name}: {error}"


def check(case: Case) -> str | None:
    """As :func:`once`; in float32 and below what shows with several draws of the numbers counts."""
    found = once(case)
    if found is None or case.computed == "float64":
        return found
    others = [once(replace(case, numbers=case.numbers + k)) for k in range(1, AGAIN)]
    return found if any(others) else None


def assert_fine(case: Case) -> None:
    """Fails with what is wrong; for the tests that the fuzzer writes."""
    found = check(case)
    assert found is None, f"{case}: {found}"


def reduced(case: Case, fails: Callable[[Case], str | None] = check, seconds: float = 30.0) -> Case:
    """The smallest case that is found to fail within some seconds, one change at a time."""
    stop = time.monotonic() + seconds
    progress = True
    while progress and time.monotonic() < stop:
        progress = False
        for smaller in simpler(case):
            if time.monotonic() > stop:
                break
            if smaller != case and fails(smaller) is not None:
                case, progress = smaller, True
                break
    return case


def written(case: Case, message: str, folder: Path = FOLDER) -> Path:
    """Writes a test of the case, and returns its file."""
    name = hashlib.sha256(str(case).encode()).hexdigest()[:8]
    path = folder / f"test_found_{name}.py"
    arguments = str(case).removeprefix("Case(").removesuffix(")").replace(", ", ",\n            ")
    path.write_text(
        f'"""Found by ``make fuzz``: {message.splitlines()[0][:80]}."""\n\n'
        "from fuzz.case import Case\nfrom fuzz.differential import assert_fine\nfrom fuzz.needs import needs_both\n\n\n"
        f"@needs_both\ndef test_found_{name}() -> None:\n"
        f"    assert_fine(\n        Case(\n            {arguments},\n        )\n    )\n"
    )
    return path


def case_of(seed: int, number: int) -> Case:
    """A case of a run, by itself."""
    return draw(random.Random(seed * 10**9 + number))


def run(
    seconds: float, seed: int, most: int = 5, folder: Path = FOLDER, cases: int | None = None
) -> tuple[int, list[Path]]:
    """Runs `cases`, or until the time is over or `most` of them failed: how many, and the tests that were written."""
    stop, paths, count = time.monotonic() + seconds, [], 0
    kinds: Counter[str] = Counter()
    while (time.monotonic() < stop if cases is None else count < cases) and len(paths) < most:
        case = case_of(seed, count)
        message = check(case)
        count += 1
        kinds[case.kind] += 1
        if message is None:
            continue
        print(f"case {count - 1} failed: {message}\n  {case}", flush=True)
        small = reduced(case)
        message = check(small) or message
        path = written(small, message, folder)
        if path not in paths:
            paths.append(path)
        print(f"  reduced to {small}\n  {message}\n  written to {path}", flush=True)
    print(f"{count} cases, {len(paths)} failed; {dict(sorted(kinds.items()))}")
    return count, paths


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, help="run so many, however long they take: the same on every machine")
    parser.add_argument("--case", type=int, help="run this case of the seed alone")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where to write tests")
    options = parser.parse_args()
    print(f"seed {options.seed}, {options.seconds:g} s, pid {os.getpid()}", flush=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)
    if options.case is not None:
        case = case_of(options.seed, options.case)
        print(case, check(case) or "fine", sep="\n")
        return 0
    count, paths = run(options.seconds, options.seed, folder=options.folder, cases=options.cases)
    if count == 0 or paths:
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
