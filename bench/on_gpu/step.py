"""One training step at the headline shape for a profiler.

python -m on_gpu.step            its kernels by name, with calls and time, from torch's profiler
python -m on_gpu.step --mark     the step alone between the start and the stop of a profiler such as ncu
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence

import torch

from on_gpu.lines import emit
from on_gpu.workload import Workload, why_not_native

STEPS = 5
# One launch each for the convolutions of a layer: what the headline figures are measured on.
FUSED = ("gatv2_stack_fwd_kernel", "gatv2_stack_bwd_kernel")


def short(name: str) -> str:
    """A kernel's name without namespaces and parameters."""
    name = re.sub(r"\(anonymous namespace\)::|hiermt::cuda::|hiermt::|^void ", "", name)
    return name.split("(")[0][:120]


def kernels(step: object, device: str) -> dict[str, list[float]]:
    """Microseconds of each call during ``STEPS`` steps, by name."""
    kinds = [torch.profiler.ProfilerActivity.CUDA if device == "cuda" else torch.profiler.ProfilerActivity.CPU]
    found: dict[str, list[float]] = {}
    with torch.profiler.profile(activities=kinds) as profile:
        for _ in range(STEPS):
            step()  # type: ignore[operator]
        if device == "cuda":
            torch.cuda.synchronize()
    for event in profile.events():
        if device == "cpu" or event.device_type == torch.autograd.DeviceType.CUDA:
            found.setdefault(short(event.name), []).append(event.time_range.elapsed_us())
    return found


def why_not_fused(names: Sequence[str]) -> str | None:
    """Why the kernels of a step are not those of the fused path; ``None`` if they are."""
    missing = [one for one in FUSED if not any(one in name for name in names)]
    return f"not among the kernels: {', '.join(missing)}; there are {', '.join(names)[:300]}" if missing else None


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the step; returns 1 if it does not take the fused path."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mark", action="store_true")
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args(arguments)
    if reason := why_not_native(options.dry_run):
        print(f"no native operators: {reason}", file=sys.stderr)
        return 1
    work = Workload("native", dry=options.dry_run)
    step = work.step(work.optimizer())
    for _ in range(3):
        step()
    if options.mark:
        torch.cuda.synchronize()
        torch.cuda.profiler.start()
        step()
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()
        return 0
    found = kernels(step, work.device)
    for name, times in sorted(found.items(), key=lambda one: -sum(one[1])):
        emit("kernel", name=name, calls=len(times) / STEPS, us=sum(times) / len(times), total_us=sum(times) / STEPS)
    reason = work.why_no_template() or (None if options.dry_run else why_not_fused(list(found)))
    facts = {"name": "fused path", "launches": sum(map(len, found.values())) / STEPS}
    emit("check", **facts, **({"error": reason} if reason else {}))
    return int(reason is not None)


if __name__ == "__main__":
    sys.exit(main())
