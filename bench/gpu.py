"""One command for a machine with a GPU: build, test, sanitize, time.

Needs nothing but the Python that holds torch, and nvcc; no network and no environment of its own. Everything is
bounded by time, so that the whole takes less than nine minutes. Writes ``<gpu>.json`` and ``<gpu>.md`` into ``$OUT``,
or into ``bench/results``.

    python bench/gpu.py                 all of it
    python bench/gpu.py time            only some parts: build test time sanitize compiled
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PARTS = ("build", "test", "time", "sanitize", "compiled")
TOTAL_S = 520
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
# A reduced suite: a sanitizer slows a kernel down a hundred times, torch's start alone takes it half a minute.
SANITIZED = "test_model_and_gradients_match_the_float64_twin and dtype0 and default or graph_prepare and default"
# Competitors that start at once, and those that compile for a minute or more: they get what time is left.
COMPETITORS = ("native", "pyg", "twin")
COMPILED = ("twin-compiled", "pyg-compiled")
# Kept back from the first ones for the sanitizers.
RESERVED_S = 150
START = time.monotonic()


def left() -> float:
    """Seconds until the whole has to be over."""
    return TOTAL_S - (time.monotonic() - START)


def run(command: list[str], limit: float, **environment: str) -> dict[str, Any]:
    """Runs a command within a limit; its exit status, seconds and the end of what it said."""
    begin = time.monotonic()
    limit = min(limit, left())
    if limit < 5:
        return {"command": " ".join(command), "skipped": "no time left"}
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, **environment},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=limit,
            check=False,
        )
        status, text = done.returncode, done.stdout
    except subprocess.TimeoutExpired as error:
        raw = error.stdout or b""
        status, text = 124, raw.decode(errors="replace") if isinstance(raw, bytes) else raw
    seconds = time.monotonic() - begin
    print(f"[{seconds:5.0f} s] exit {status}: {' '.join(command)[:100]}", flush=True)
    if status:
        print("    " + "\n    ".join(text.splitlines()[-40:]), flush=True)
    return {"command": " ".join(command), "exit": status, "seconds": round(seconds, 1), "tail": text[-6000:]}


def build() -> dict[str, Any]:
    """The extension in place, for the GPU that is there."""
    import torch

    major, minor = torch.cuda.get_device_capability()
    jobs = str(os.cpu_count() or 4)
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    return run(command, 240, FORCE_CUDA="1", TORCH_CUDA_ARCH_LIST=f"{major}.{minor}", MAX_JOBS=jobs)


def test() -> dict[str, Any]:
    """The tests of the kernels on the GPU, each on two streams."""
    if importlib.util.find_spec("pytest") is None:
        return {"skipped": "no pytest"}
    return run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_cuda.py"], 150)


def sanitize() -> dict[str, Any]:
    """compute-sanitizer over a reduced suite, all its tools."""
    tool_path = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(tool_path).exists():
        return {"skipped": "no compute-sanitizer"}
    results = {}
    for tool in TOOLS:
        command = [tool_path, "--tool", tool, "--error-exitcode", "99", "--kernel-regex", "kns=hiermt"]
        command += [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "tests/test_cuda.py"]
        results[tool] = run([*command, "-k", SANITIZED], 35, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
    return results


def timed(steps: list[Callable[[], Any]], repeats: int = 60, graph: bool = True) -> dict[str, Any]:
    """Median milliseconds of a step by CUDA events, replayed from CUDA graphs if it can be captured.

    `steps` do the same work on different inputs and take turns, so that no run finds its own input in a cache.
    """
    import torch

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for step in [*steps, *steps, *steps][:6]:
            step()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    calls, how = steps, "eager"
    if graph:
        try:
            captured = []
            for step in steps:
                captured.append(torch.cuda.CUDAGraph())
                with torch.cuda.graph(captured[-1]):
                    step()
            calls, how = [one.replay for one in captured], "graph replay"
        except Exception as error:
            torch.cuda.synchronize()
            how = f"eager ({type(error).__name__} in capture)"
    for call in calls:
        call()
    times = []
    for i in range(repeats):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        calls[i % len(calls)]()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    quartiles = statistics.quantiles(times, n=4)
    return {"ms": statistics.median(times), "q1_ms": quartiles[0], "q3_ms": quartiles[2], "how": how}


def forward_case(case: Any, competitor: str) -> dict[str, Any]:
    """Forward of the whole model, over inputs that take turns."""
    import cases
    import torch

    model, (x, *edges) = cases.problem(case, competitor, "cuda")
    model.eval()
    edges = _prepared(competitor, x, edges)

    def on(one: Any) -> Callable[[], None]:
        def step() -> None:
            with torch.no_grad():
                model(one, *edges)

        return step

    result = timed([on(torch.randn_like(x)) for _ in range(3)], graph="compiled" not in competitor)
    return {**result, "stocks_per_s": case.stocks / result["ms"] * 1e3}


def training_case(case: Any, competitor: str) -> dict[str, Any]:
    """One training step with Adam, and the memory it takes beyond parameters and input."""
    import cases
    import torch

    import hiermt

    model, (x, *edges) = cases.problem(case, competitor, "cuda")
    edges = _prepared(competitor, x, edges)
    model.train()
    signal = torch.randint(0, 2, (x.size(0),), device="cuda")
    direction = torch.randint(0, 2, (x.size(0),), device="cuda")
    mask = signal == 1
    criterion = hiermt.MultiTaskLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, capturable=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=False)
        criterion.terms(*model(x, *edges), signal, direction, mask).total.backward()
        optimizer.step()

    step()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    result = timed([step], repeats=30, graph="compiled" not in competitor)
    return {**result, "stocks_per_s": case.stocks / result["ms"] * 1e3, "peak_mb": peak / 1e6}


def _prepared(competitor: str, x: Any, edges: list[Any]) -> list[Any]:
    """A Graph for our own models: prepared once, as a user would."""
    import hiermt

    return edges if competitor.startswith("pyg") else [hiermt.Graph(edges[0], edges[1], x.size(0))]


def decision_case() -> dict[str, Any]:
    """The decision op over ten million rows against a copy in the same run, in bytes moved per second."""
    import torch

    from hiermt import functional

    rows, hidden = 10_000_000, 16
    h = torch.randn(rows, hidden, device="cuda")
    params = [torch.randn(s, device="cuda") for s in ((16, 16), (16,), (2, 16), (2,), (2, 16), (2,))]
    to = torch.empty_like(h)
    copy = timed([lambda: to.copy_(h)], repeats=20)

    def step() -> None:
        with torch.no_grad():
            functional.decision(h, params, 0.5, backend="native")

    ours = timed([step], repeats=20)
    moved = rows * (4 * hidden + 8 + 8 + 16 + 8 + 4)
    copied = 2 * h.numel() * 4
    bandwidth = {"decision_gb_s": moved / ours["ms"] / 1e6, "copy_gb_s": copied / copy["ms"] / 1e6}
    return {**ours, **bandwidth, "of_copy": bandwidth["decision_gb_s"] / bandwidth["copy_gb_s"]}


def measure(competitors: tuple[str, ...] = COMPETITORS, keep: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """Every case of the targets, ours first; `keep` gets what is known after each case."""
    sys.path[:0] = [str(ROOT), str(HERE)]
    import cases
    import torch

    sizes = {"32 graphs": cases.Case(), "1 graph": cases.Case(copies=1), "1024 graphs": cases.Case(copies=1024)}
    found: dict[str, Any] = {}
    jobs: list[tuple[str, Callable[[], dict[str, Any]]]] = []
    for competitor in competitors:
        for name, case in sizes.items():
            if name == "1024 graphs" and competitor != "native":
                continue
            jobs.append((f"forward, {name}: {competitor}", lambda c=case, w=competitor: forward_case(c, w)))
        case = sizes["32 graphs"]
        jobs.append((f"training step, 32 graphs: {competitor}", lambda c=case, w=competitor: training_case(c, w)))
        if competitor == "native":
            jobs.append(("decision, 10 M rows: native", decision_case))
    for name, job in jobs:
        if competitors == COMPETITORS and left() < RESERVED_S:
            found[name] = {"skipped": "no time left"}
            continue
        try:
            found[name] = job()
        except Exception as error:
            found[name] = {"error": f"{type(error).__name__}: {error}"[:500]}
            torch.cuda.synchronize()
        print(f"{name}: {found[name]}", flush=True)
        torch.cuda.empty_cache()
        if keep is not None:
            keep(found)
    return found


def compiled() -> dict[str, Any]:
    """What torch.compile makes of the others, in a process that can be ended when the time is over."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "figures.json"
        run([sys.executable, str(HERE / "gpu.py"), "--child", str(path)], left() - 5)
        return json.loads(path.read_text()) if path.exists() else {"torch.compile": {"skipped": "no time left"}}


def table(figures: dict[str, Any]) -> str:
    """A Markdown table of what was timed."""
    rows = ["| case | median | rate | how |", "|---|---|---|---|"]
    for name, figure in figures.items():
        if "ms" not in figure:
            rows.append(f"| {name} | - | - | {figure.get('error', figure.get('skipped', ''))[:80]} |")
            continue
        rate = f"{figure['stocks_per_s'] / 1e6:.1f} M stocks/s" if "stocks_per_s" in figure else ""
        if "of_copy" in figure:
            rate = f"{figure['decision_gb_s']:.0f} GB/s, {100 * figure['of_copy']:.0f} % of a copy"
        if "peak_mb" in figure:
            rate += f", {figure['peak_mb']:.0f} MB"
        rows.append(f"| {name} | {1e3 * figure['ms']:.1f} us | {rate} | {figure['how']} |")
    return "\n".join(rows)


def main() -> int:
    """Runs the parts that were asked for, all by default."""
    import torch

    if not torch.cuda.is_available():
        print("no GPU: torch.cuda.is_available() is False", file=sys.stderr)
        return 2
    if sys.argv[1:2] == ["--child"]:
        path = Path(sys.argv[2])
        measure(COMPILED, lambda found: path.write_text(json.dumps(found)))
        return 0
    parts = sys.argv[1:] or list(PARTS)
    gpu = torch.cuda.get_device_name()
    record: dict[str, Any] = {
        "gpu": gpu,
        "capability": list(torch.cuda.get_device_capability()),
        "multiprocessors": torch.cuda.get_device_properties(0).multi_processor_count,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": sys.version.split()[0],
        "date": time.strftime("%Y-%m-%d"),
    }
    out = Path(os.environ.get("OUT") or HERE / "results")
    out.mkdir(parents=True, exist_ok=True)
    stem = re.sub(r"\W+", "-", gpu.lower()).strip("-")
    # What matters most comes first.
    work = {"build": build, "test": test, "time": measure, "sanitize": sanitize, "compiled": compiled}
    for part, job in work.items():
        if part in parts:
            record[part] = job()
            (out / f"{stem}.json").write_text(json.dumps(record, indent=1) + "\n")
            if part == "build" and record[part].get("exit"):
                return 1
    text = table({**record.get("time", {}), **record.get("compiled", {})})
    (out / f"{stem}.md").write_text(f"{gpu}, torch {torch.__version__}\n\n{text}\n")
    print(f"\n{text}\n\nwritten to {out / stem}.json after {time.monotonic() - START:.0f} s")
    failed = [part for part in ("test",) if record.get(part, {}).get("exit")]
    failed += [t for t, r in record.get("sanitize", {}).items() if isinstance(r, dict) and r.get("exit") == 99]
    print(f"failed: {', '.join(failed) or 'nothing'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
