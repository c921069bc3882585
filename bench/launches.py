"""Counts the launches and the memory of a forward and of a training step on a GPU, without a GPU.

    python bench/launches.py                         stocks-3200 and stocks-100
    python bench/launches.py --cases gcn-3200 --each the operators one by one, too

The operators of hiermt run in the harness of tests/simt, which counts what they launch and allocate. Those of torch run
on the CPU and count as many kernels as they launch on a GPU; one that is not listed here is an error. The first run of
a case, which prepares the graph and makes the state of Adam, is not counted. Memory is the most that the results and
workspaces of a step have at once, beside parameters, state of Adam, inputs and graph.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import cases
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hiermt.functional import loss

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from simt import harness, program  # noqa: E402

# Of the lists of tensors that one launch of a foreach or fused kernel takes: how many tensors, by the number of lists
# (depth_to_max_tensors in ATen/native/cuda/MultiTensorApply.cuh).
TENSORS_OF_A_LAUNCH = {1: 110, 2: 64, 3: 48, 4: 36, 5: 30}
# Allocate or change metadata alone.
NOTHING = {"empty", "empty_like", "detach", "alias", "view", "_unsafe_view", "slice", "select", "unsqueeze", "expand"}
# No kernel runs: what is launched and allocated does not depend on a number.
COUNT_ALONE = {"HIERMT_SIMT_COUNT_ALONE": "1"}
ONE = {"fill_", "zero_", "ones_like", "copy_", "add_"}


class Operator(NamedTuple):
    """One call: its name, the kernels that it launches, the most bytes that there were meanwhile."""

    name: str
    launches: int
    peak_bytes: int


def launches_of(func: Any, args: Sequence[Any]) -> int:
    """Kernels that an operator of torch launches on a GPU."""
    name = func._schema.name.removeprefix("aten::")
    if name in NOTHING or func.namespace == "profiler":
        return 0
    if name in ONE:
        return 1
    if name == "_foreach_add_":
        return -(-len(args[0]) // TENSORS_OF_A_LAUNCH[1])
    if name == "_fused_adam_":
        lists = [one for one in args[:5] if len(one) > 0]
        return -(-len(args[0]) // TENSORS_OF_A_LAUNCH[len(lists)])
    raise NotImplementedError(f"bench/launches.py does not know how many kernels {name} launches")


class Recorder(TorchDispatchMode):
    """Lists the operators that run within it; entered after the harness, which it sees through."""

    def __init__(self, simt: harness.Simt) -> None:
        super().__init__()
        self.simt = simt
        self.operators: list[Operator] = []
        self._storages: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = self._live()
        given = {_storage(one)[0].cdata for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)}
        out = func(*args, **(kwargs or {}))
        for one in tree_leaves(out):
            if isinstance(one, Tensor):
                reference, size = _storage(one)
                if reference.cdata not in given:
                    self._storages[reference.cdata] = reference, size
        if func.namespace == "hiermt":
            name, launches = self.simt.calls[-1]
            self.operators.append(Operator(name, launches, before + self.simt.peak_bytes[-1]))
        else:
            self.operators.append(Operator(func._schema.name, launches_of(func, args), self._live()))
        return out

    def _live(self) -> int:
        """Bytes of the results that are still there."""
        self._storages = {key: one for key, one in self._storages.items() if not one[0].expired()}
        return sum(size for _, size in self._storages.values())


def _storage(tensor: Tensor) -> tuple[StorageWeakRef, int]:
    storage = tensor.untyped_storage()
    return StorageWeakRef(storage), storage.nbytes()


def operators(case_name: str, pass_name: str) -> list[Operator]:
    """The operators of one pass."""
    model, arguments = cases.problem(cases.CASES[case_name], "native")
    step = {"forward": cases.forward, "training": cases.training}[pass_name](model, arguments)
    step()
    # On a GPU the labels are not looked at.
    with mock.patch.object(loss, "_check_labels"), harness.Simt(COUNT_ALONE) as simt, Recorder(simt) as recorder:
        step()
    return recorder.operators


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default="stocks-3200,stocks-100", help="comma-separated, see bench/cases.py")
    parser.add_argument("--passes", default="forward,training", help="comma-separated")
    parser.add_argument("--each", action="store_true", help="list the operators, too")
    options = parser.parse_args()
    if program.compiler() is None:
        print("bench/launches.py needs g++ on x86-64", file=sys.stderr)
        return 2
    print("| pass | launches, of hiermt | of torch | memory, MB |", "|---|---|---|---|", sep="\n")
    for case_name in options.cases.split(","):
        for pass_name in options.passes.split(","):
            found = operators(case_name, pass_name)
            ours = sum(one.launches for one in found if ":" not in one.name)
            torchs = sum(one.launches for one in found) - ours
            peak = max(one.peak_bytes for one in found)
            print(f"| {case_name} {pass_name} | {ours} | {torchs} | {peak / 1e6:.1f} |")
            for one in found if options.each else []:
                if one.launches:
                    print(f"|   {one.name} | {one.launches} | | {one.peak_bytes / 1e6:.1f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
