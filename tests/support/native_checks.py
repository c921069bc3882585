"""What every native operator is held to: its error beside the twin's, its bits over threads, its tests on every ISA."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# The output of an operator, and the gradients of its leaves.
Found = tuple[Tensor, Sequence[Tensor]]
STRIDES = ["NFT", "TNF", "slice", "step", "windows", "expanded"]


def strided(kind: str, nodes: int, steps: int, channels: int) -> tuple[Tensor, Tensor]:
    """A view ``[nodes, steps, channels]`` of memory laid out in its own way, and the same numbers contiguous."""
    if kind == "NFT":
        x = torch.randn(nodes, channels, steps).transpose(1, 2)
    elif kind == "TNF":
        x = torch.randn(steps, nodes, channels).transpose(0, 1)
    elif kind == "slice":
        x = torch.randn(nodes + 4, steps + 4, channels + 7)[2 : nodes + 2, 1 : steps + 1, 3 : channels + 3]
    elif kind == "step":
        x = torch.randn(2 * nodes, 2 * steps, 2 * channels)[::2, ::2, ::2]
    elif kind == "windows":
        x = torch.randn(channels, nodes + steps - 1).unfold(1, steps, 1).permute(1, 2, 0)
    elif kind == "expanded":
        x = torch.randn(1, steps, channels).expand(nodes, steps, channels)
    else:
        raise ValueError(kind)
    return x, x.contiguous()


def assert_as_exact_as_the_twin(native: Found, twin: Found, exact: Found, together: bool = False) -> None:
    """Root mean square error against float64, of the output and of each gradient: at most twice that of the twin.

    `together`: all gradients but the first count as one, where the error of a few elements is a matter of luck.
    """

    def errors(found: Found) -> list[float]:
        pairs = zip([found[0], *found[1]], [exact[0], *exact[1]], strict=True)
        value, first, *others = [float((a.double() - b).detach().norm()) for a, b in pairs]
        return [value, first, *([sum(error**2 for error in others) ** 0.5] if together else others)]

    for ours, theirs in zip(errors(native), errors(twin), strict=True):
        assert ours <= 2 * theirs


def assert_same_bits(run: Callable[[], Found], runs: int = 20) -> None:
    """The same result on one thread and, over and over, on two."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        out, grads = run()
        torch.set_num_threads(2)
        for _ in range(runs - 1):
            again, again_grads = run()
            assert all(torch.equal(a, b) for a, b in zip([out, *grads], [again, *again_grads], strict=True))
    finally:
        torch.set_num_threads(before)
