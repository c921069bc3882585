"""Forward and training step of the whole model, for every competitor.

``python bench/run.py`` runs each competitor in its own process, because an allocator keeps the state of earlier runs.
"""

from __future__ import annotations

import os
from typing import Any

import cases
import pipeline
import pytest
import torch


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    option = metafunc.config.getoption
    names = list(cases.CASES) if option("--cases") == "all" else option("--cases").split(",")
    metafunc.parametrize("case_name", names)
    metafunc.parametrize("pass_name", option("--passes").split(","))
    metafunc.parametrize("competitor", option("--competitors").split(","))


def test_model(benchmark: Any, machine: dict[str, Any], case_name: str, pass_name: str, competitor: str) -> None:
    if competitor.startswith("pyg"):
        pytest.importorskip("torch_geometric")
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if competitor.endswith("1-thread") else threads)
    if competitor.endswith("avx2") and os.environ.get("HIERMT_CPU_ISA") != "avx2":
        pytest.skip("set HIERMT_CPU_ISA=avx2 before hiermt is imported; bench/run.py does")
    try:
        case = cases.CASES[case_name]
        if not cases.applies(case, competitor, pass_name):
            pytest.skip("the case has no such pass or competitor")
        if case.model == cases.PIPELINE:
            step = pipeline.epoch(case, competitor)
        else:
            model, arguments = cases.problem(case, competitor)
            step = {"forward": cases.forward, "training": cases.training}[pass_name](model, arguments)
        result = step()
        assert bool(torch.isfinite(result).all())
        benchmark.group = f"{case_name} {pass_name}"
        benchmark.extra_info.update(
            machine, case=case_name, sizes=vars(case), stocks=case.stocks, direction=pass_name, competitor=competitor
        )
        slow = not competitor.startswith("native")
        single = slow or case.model == cases.PIPELINE
        benchmark.pedantic(step, rounds=5 if single else 25, iterations=1 if single else 4, warmup_rounds=2)
    finally:
        torch.set_num_threads(threads)
