"""What ``make gpu`` runs on a GPU, on the CPU and tiny; its record and tables."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from support.on_gpu import BENCH, FIGURE, GPU, ROOT, kept, part, python


@pytest.fixture(scope="module")
def gpu() -> Iterator[Any]:
    sys.path.insert(0, str(BENCH))
    yield importlib.import_module("gpu")
    sys.path.remove(str(BENCH))


# What runs on the GPU ---------------------------------------------------------------------------------------------


def results(text: str) -> list[dict[str, Any]]:
    return [found for line in text.splitlines() if (found := part("lines").parse(line))]


def needs_kernels() -> None:
    from hiermt.native import extension

    if reason := extension.why_not_native("cpu"):
        pytest.skip(reason)


def test_native_figures_come_headline_first(gpu: Any, capsys: pytest.CaptureFixture[str]) -> None:
    needs_kernels()
    assert part("figures").main(["native", "--dry-run"]) == 0
    found = results(capsys.readouterr().out)
    assert [one["case"] for one in found[:3]] == ["forward, 32 graphs", "training step, 32 graphs", "forward, 1 graph"]
    assert all(one["ms"] > 0 and one["how"] == "eager" for one in found)
    assert found[-1]["case"] == "decision, 10 M rows" and found[-1]["of_copy"] > 0
    assert len(found) == 9


def test_a_graph_without_a_template_is_not_timed(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    figures, workload = part("figures"), part("workload")
    bench = figures.Bench("native", dry=True)
    made = bench.workload(2)
    assert made.why_no_template() is None
    # One edge less in one copy: the copies differ.
    index, weight = made.graph.edge_index, made.graph.edge_weight
    monkeypatch.setattr(workload.cases, "problem", lambda *_: (made.model, (made.x, index[:, 1:], weight[1:])))
    with pytest.raises(RuntimeError, match="template was not found: the graph has 200 nodes, its template 100"):
        bench.workload(2)


def test_a_step_accumulates_into_no_old_gradient(gpu: Any) -> None:
    work = part("workload").Workload("twin", dry=True)
    seen = []
    optimizer = work.optimizer()
    step = work.step(optimizer)
    zero = optimizer.zero_grad

    def zero_grad(set_to_none: bool = True) -> None:
        zero(set_to_none)
        seen.append(all(parameter.grad is None for parameter in work.model.parameters()))

    optimizer.zero_grad = zero_grad
    step()
    step()
    assert seen == [True, True]


def test_headline_gradients_are_compared_by_norms(
    gpu: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    needs_kernels()
    headline = part("headline")
    assert headline.main(["--dry-run"]) == 0
    found = results(capsys.readouterr().out)
    names = {one["name"] for one in found}
    assert {"signal_logits", "loss", "gradient of x", "gradient of edge_weight"} <= names and len(found) > 40
    real = headline.results

    def wrong(model: Any, x: Any, *others: Any) -> Any:
        values = real(model, x, *others)
        if x.dtype == torch.float32 and model.backend != "reference":
            values["gradient of x"] = values["gradient of x"] * 1.0001
        return values

    monkeypatch.setattr(headline, "results", wrong)
    assert headline.main(["--dry-run"]) == 1
    errors = [one for one in results(capsys.readouterr().out) if "error" in one]
    assert [one["name"] for one in errors] == ["gradient of x"] and "off by 1.0e-04" in errors[0]["error"]


def test_the_fused_kernels_are_known_by_name(gpu: Any) -> None:
    step = part("step")
    sources = "".join(path.read_text() for path in (ROOT / "csrc" / "cuda" / "fused").iterdir())
    assert all(f" {name}(" in sources for name in step.FUSED), "a kernel was renamed: mend bench/on_gpu/step.py"
    name = "void hiermt::cuda::(anonymous namespace)::gatv2_stack_fwd_kernel<float, 16>(StackForward<float>)"
    assert step.short(name) == "gatv2_stack_fwd_kernel<float, 16>"
    both = ["gatv2_stack_fwd_kernel<float, 16>", "gatv2_stack_bwd_kernel<float, 16, false>"]
    assert step.why_not_fused(both) is None
    assert "gatv2_stack_bwd_kernel" in step.why_not_fused([both[0], "linear_kernel<float>"])


def test_operators_hand_over_each_call(gpu: Any, capsys: pytest.CaptureFixture[str]) -> None:
    needs_kernels()
    operators = part("operators")
    assert operators.main(["--device", "cpu", "--only", "decision-"]) == 0
    found = results(capsys.readouterr().out)
    assert found and all(one["kind"] == "call" and one["outcome"] == "passed" for one in found)
    assert operators.main(["--device", "cpu", "--only", "no such operator"]) == 1


def test_what_follows_a_fault_of_a_kernel_runs_in_a_new_process(
    gpu: Any, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No later call of the same one would be right, nor say anything about its own kernel."""
    needs_kernels()
    operators, figures = part("operators"), part("figures")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, part("process").PATHS)))
    for module in (operators, figures):
        monkeypatch.setattr(module, "computes", lambda device: False)

    def fault(*_: Any) -> None:
        raise RuntimeError("CUDA error: an illegal memory access")

    monkeypatch.setattr(operators, "compare", fault)
    assert operators.main(["--device", "cpu", "--only", "logits-200-"]) == 1
    found = results(capfd.readouterr().out)
    assert [one["outcome"] for one in found] == ["failed", *["passed"] * 4]
    assert len({one["name"] for one in found}) == 5
    monkeypatch.setattr(figures.Bench, "training", fault)
    assert figures.main(["twin", "--dry-run"]) == 1
    found = results(capfd.readouterr().out)
    assert ["error" in one for one in found] == [False, True, False]
    assert part("device").computes("cpu") and not part("device").computes("meta")


# Record and tables ------------------------------------------------------------------------------------------------


def test_a_later_run_keeps_what_it_does_not_measure(gpu: Any, tmp_path: Path) -> None:
    record = part("record")
    first = record.Record([tmp_path], [tmp_path / "log"])
    first.stamp["date"] = "2026-01-01 10:00"
    first.machine(dict(GPU))
    first.stage("native", 60, lambda limit: first.run(limit, python(FIGURE.format("a")), python(FIGURE.format("b"))))
    second = record.Record([tmp_path], [tmp_path / "log"])
    second.stamp["date"] = "2026-02-01 10:00"
    second.machine(dict(GPU))
    second.take("native", {"kind": "figure", "case": "a", "competitor": "native", "ms": 0.25, "how": "graph replay"})
    second.stage("racecheck", 60, lambda limit: second.run(limit, python("print(1)")))
    found = kept(second)
    assert {one["case"]: (one["ms"], one["date"][:7]) for one in found["figures"]} == {
        "a": (0.25, "2026-02"),
        "b": (0.5, "2026-01"),
    }
    assert found["stages"]["native"]["date"] < found["stages"]["racecheck"]["date"]
    assert second.failed() == []


def test_results_of_another_machine_are_kept_under_their_commit(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = part("version")
    monkeypatch.setenv("COMMIT", "")
    stamp = {"date": "2026-03-01 10:00", "commit": None}
    stages = {
        "native": {**stamp, "sources": version.digest(ROOT), "state": "done"},
        "pyg": {**stamp, "sources": "other", "state": "running"},
    }
    record = {**GPU, "stages": stages, "figures": [], "checks": [], "kernels": []}
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "gpu.json").write_text(json.dumps(record))
    (tmp_path / "results").mkdir()
    monkeypatch.setattr(version, "commit", lambda root: "0123456789")
    assert gpu.main(["--keep", str(tmp_path / "out"), "--out", str(tmp_path / "results")]) == 0
    table = "\n".join(part("tables").parts(tmp_path / "results"))
    assert "| `make gpu-first` | 2026-03-01 10:00 | NVIDIA H100 80GB HBM3 | 0123456789 | native: done |" in table
    assert "| `make gpu-check` | not yet | | | |" in table
    assert "| sources other | pyg: cut |" in table
    (tmp_path / "empty").mkdir()
    assert gpu.main(["--keep", str(tmp_path / "empty"), "--out", str(tmp_path / "results")]) == 1


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_a_commit_is_named_only_for_unchanged_sources(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = part("version")
    monkeypatch.delenv("COMMIT", raising=False)
    for name in ("GIT_DIR", "GIT_WORK_TREE"):
        monkeypatch.delenv(name, raising=False)

    def git(*words: str) -> None:
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], cwd=tmp_path, check=True)

    (tmp_path / "setup.py").write_text("a")
    assert version.commit(tmp_path) is None
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "one")
    named, digest = version.commit(tmp_path), version.digest(tmp_path)
    assert named is not None and re.fullmatch("[0-9a-f]{10}", named)
    # A tree inside another repository, as an archive may be unpacked.
    (tmp_path / "inside").mkdir()
    assert version.commit(tmp_path / "inside") is None
    (tmp_path / "notes.md").write_text("not a source")
    assert (version.commit(tmp_path), version.digest(tmp_path)) == (named, digest)
    (tmp_path / "setup.py").write_text("b")
    assert version.commit(tmp_path) is None and version.digest(tmp_path) != digest
    monkeypatch.setenv("COMMIT", "abcdef")
    assert version.commit(tmp_path) == "abcdef"


def test_figures_of_a_gpu_stand_beside_those_of_a_cpu(gpu: Any, tmp_path: Path) -> None:
    stamp = {"date": "2026-01-01 10:00", "commit": "abc"}
    figures = [
        {"case": "a", "competitor": "pyg", "ms": 9.0, "how": "eager", "required_ms": 0.08},
        {"case": "a", "competitor": "native", "ms": 0.09, "how": "graph replay", "stocks_per_s": 4e7},
        {"case": "b", "competitor": "native", "error": "CUDA error: a | b"},
    ]
    kernels = [{"name": "k<float>", "calls": 2.0, "us": 5.0, "total_us": 10.0, **stamp}]
    record = {**GPU, "figures": [{**one, **stamp} for one in figures], "kernels": kernels, "stages": {}, "checks": []}
    (tmp_path / "gpu.json").write_text(json.dumps(record))
    (tmp_path / "cpu.json").write_text("[]")
    stages, text, launches = part("tables").parts(tmp_path)
    assert stages.count("not yet") == 3
    assert "`bench/results/gpu.json`; 2026-01-01, abc)" in text
    assert "| a | 80.0 us | 9,000.0 us, eager | 90.0 us, 40.0 M stocks/s (**100.0x**) |" in text
    assert "CUDA error: a / b" in text
    assert "| `k<float>` | 2 | 5.0 | 10.0 |" in launches


def test_without_a_gpu_nothing_is_built(gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUT", str(tmp_path))
    if not torch.cuda.is_available():
        assert gpu.main(["first", "--out", str(tmp_path / "results")]) == 2
        assert json.loads((tmp_path / "no-gpu.json").read_text())["stages"]["probe"]["state"] == "done"
    with pytest.raises(SystemExit):
        gpu.main(["fist"])
    with pytest.raises(SystemExit):
        gpu.main(["--dry-run"])
