"""Fuzzes the readers of files: with atheris, guided by coverage, where it is installed, else by blind mutation.

    PYTHONPATH=tests python -m fuzz.guided --seconds 30 --seed 7 [prices folder ...]

An input that fails is kept in ``tests/fuzz/corpus/<reader>``, every file of which ``test_corpus.py`` reads again.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import random
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"
# Words of the formats, which single bytes seldom spell.
DICTIONARY = (
    *("Date", "Symbol", "Ticker", "Close", "Adj Close", "Open", "High", "Low", "2024-01-31", "20240131", "31.1.2024"),
    *("NaN", "inf", "1e999", "-1", "1_000", '\\"', "\\xEF\\xBB\\xBF", "Unnamed: 0", "index", "Sector"),
    *("'descr'", "'<f8'", "'|O'", "fortran_order", "shape", "data_offsets", "dtype", "F32", "__metadata__", "options"),
)


def blind(name: str, seconds: float, seed: int) -> int:
    """Mutates the corpus without looking at coverage; returns the number of inputs."""
    from fuzz import readers

    rng, count = random.Random(seed), 0
    pool = [*readers.seeds(name), *(path.read_bytes() for path in sorted((CORPUS / name).glob("*")))]
    words = [word.encode().decode("unicode_escape").encode("latin-1") for word in DICTIONARY]
    stop = time.monotonic() + seconds
    while time.monotonic() < stop:
        content = bytearray(rng.choice(pool))
        for _ in range(rng.choice((1, 1, 2, 4, 8))):
            at = rng.randrange(len(content) + 1)
            kind = rng.randrange(4)
            if kind == 0 and content:
                content[at % len(content)] = rng.randrange(256)
            elif kind == 1:
                content[at:at] = rng.choice(words)
            elif kind == 2:
                del content[at : at + rng.randrange(8)]
            else:
                content[at:at] = content[at : at + rng.randrange(30)]
        count += 1
        try:
            readers.READERS[name](bytes(content))
        except Exception:
            traceback.print_exc()
            path = CORPUS / name / f"crash-{hashlib.sha1(content).hexdigest()}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            print(f"{name}: kept in {path}")
            raise
    return count


def guided(name: str, options: list[str]) -> None:
    """Runs one reader under atheris in this process, which ends with it."""
    import atheris

    with atheris.instrument_imports(include=["hiermt.data", "hiermt.io", "hiermt.training", "hiermt.cli.config_file"]):
        import hiermt
        import hiermt.cli.config_file  # noqa: F401
    from fuzz import readers

    begin = Path(options.pop())
    for i, content in enumerate(readers.seeds(name)):
        (begin / f"seed-{i}").write_bytes(content)
        # Imports on first use are no part of an input's time.
        readers.READERS[name](content)
    atheris.Setup([sys.argv[0], *options, str(begin), str(CORPUS / name)], readers.READERS[name])
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("readers", nargs="*")
    parser.add_argument("--seconds", type=float, default=30, help="of all readers together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--within", action="store_true", help=argparse.SUPPRESS)
    given, rest = parser.parse_known_args()
    if given.within:
        guided(given.readers[0], rest)
        return 0
    from fuzz import readers

    names = given.readers or list(readers.READERS)
    each = max(given.seconds / len(names), 1)
    failed = []
    for name in names:
        (CORPUS / name).mkdir(parents=True, exist_ok=True)
        if importlib.util.find_spec("atheris") is None:
            try:
                print(f"{name}: {blind(name, each, given.seed)} inputs, blind", flush=True)
            except Exception:
                failed.append(name)
            continue
        with tempfile.TemporaryDirectory() as begin, tempfile.TemporaryFile("w+", encoding="utf-8") as log:
            dictionary = Path(begin) / ".words"
            dictionary.write_text("".join(f'"{word}"\n' for word in DICTIONARY), encoding="utf-8")
            (Path(begin) / "pool").mkdir()
            limits = ["-timeout=30", "-rss_limit_mb=4096", "-print_final_stats=1", f"-dict={dictionary}"]
            limits += [f"-max_total_time={int(each)}", f"-seed={given.seed or 1}", "-max_len=8192"]
            limits += [f"-artifact_prefix={CORPUS / name}/"]
            command = [sys.executable, "-m", "fuzz.guided", name, "--within", *limits, f"{begin}/pool"]
            done = subprocess.run(command, stdout=log, stderr=log, check=False, env=os.environ)
            log.seek(0)
            lines = log.read().splitlines()
        if done.returncode:
            failed.append(name)
            print("\n".join(lines[-60:]))
        units = [line.split()[-1] for line in lines if "number_of_executed_units" in line]
        edges = [word for line in lines[-40:] if " cov: " in line for word in line.split("cov: ")[1].split()[:1]]
        print(f"{name}: {''.join(units) or '?'} inputs, {edges[-1] if edges else '?'} branches", flush=True)
    readers.clean_up()
    print(f"failed: {', '.join(failed)}" if failed else "all readers raise what they document")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
