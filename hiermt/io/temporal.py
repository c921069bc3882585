"""Conversion of the cells of PyTorch Geometric Temporal, and the names of models of other families."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hiermt.io.isolation import cached_results, isolated
from hiermt.io.probe import Different
from hiermt.io.state_dicts import check_exactly, check_tensors
from hiermt.nn.temporal import A3TGCN, A3TGCN2, TGCN, TGCN2

Cell = TGCN | A3TGCN
_FIRST = "conv_z.lin.weight"
_BASE, _ATTENTION = "_base_tgcn.", "_attention"
_DEEPEST = 3
# Families whose recurrence reads the graph, by class names and by the keys of their parameters.
_OTHERS = {
    "DCRNN": (r"(Batched)?DCRNN", r"conv_x_z\.weight"),
    "GConvGRU": (r"GConvGRU", r"conv_x_z\.lins\.\d+\.weight"),
    "GConvLSTM": (r"GConvLSTM", r"conv_x_i\.lins\.\d+\.weight"),
    "GCLSTM": (r"GCLSTM", r"conv_i\.lins\.\d+\.weight"),
    "AGCRN": (r"AGCRN", r"_gate\.W"),
    "EvolveGCN": (r"EvolveGCN[HO]", r"recurrent_layer\.weight_ih_l0"),
    "T-GCN of the paper's author": (r"TGCNGraphConvolution", r"graph_conv1\.weights"),
    "T-GCN of LibCity": (r"TGCNCell_LibCity", r"weigts_0"),
}
_TOLERANCE = 1e-6


def refuse_other_families(names: Iterable[str], keys: Iterable[object], source: str) -> None:
    """Raises ``ValueError`` for a model whose recurrence reads the graph.

    Args:
        names (iterable of str): classes of its modules.
        keys (iterable): names of its parameters.
        source (str): name in the error.
    """
    classes, known = set(names), [key for key in keys if isinstance(key, str) and len(key) < 1000]
    for family, (name, key) in _OTHERS.items():
        pattern = re.compile(rf"(?:.*\.)?{key}")
        if any(re.fullmatch(name, one) for one in classes) or any(pattern.fullmatch(one) for one in known):
            raise ValueError(
                f"{source}: cannot be mapped to a T-GCN: it is a {family}, whose recurrence runs through its graph "
                "convolution, while that of a T-GCN reads no edge"
            )


def find_cell(content: object) -> Mapping[str, Any] | None:
    """The mapping with the parameters of a cell, in `content` or nested in it; ``None`` if there is none."""
    level = [content]
    for _ in range(_DEEPEST):
        mappings = [one for one in level if isinstance(one, Mapping)]
        for mapping in mappings:
            if any(isinstance(key, str) and key.split(".")[-3:] == _FIRST.split(".") for key in mapping):
                return mapping
        level = [value for mapping in mappings for value in mapping.values()]
    return None


def from_state(mapping: Mapping[str, Any], name: str, backend: str) -> tuple[Cell, list[str]]:
    """A cell with copies of the tensors of `mapping`, and what was done and assumed.

    Raises:
        ValueError: a name, a shape or a type is another than expected.
    """
    state, notes = _without_prefix(mapping, name)
    check_tensors(state, name)
    model = _build(state, name, {}, backend)
    for key, tensor in state.items():
        _register(model, key, nn.Parameter(tensor.detach().clone()))
    notes.append("Assumed, since names and shapes do not determine them: improved=False, add_self_loops=True")
    return model, notes


def from_module(module: nn.Module, name: str, backend: str) -> tuple[Cell, list[str]]:
    """A cell that shares the parameters of `module`, compared with a run of it.

    Raises:
        ValueError: names and shapes do not fit, or the results differ, or it cannot be run.
    """
    state, notes = _without_prefix(module.state_dict(), name)
    check_tensors(state, name, values=False)
    options = _options(module)
    _build(state, name, options, backend)  # raises for names and shapes before anything runs
    batched = _compare(module, name, options)
    model = _shared(module, name, options, backend, batched)
    model.train(module.training)
    return model, [*notes, f"compared with a run of {name}: the same values and gradients"]


def _without_prefix(mapping: Mapping[str, Any], name: str) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of one cell under its own names."""
    wrong = [str(key) for key, value in mapping.items() if not isinstance(value, Tensor)]
    if wrong:
        raise ValueError(f"{name}: expected a mapping from names to tensors; {', '.join(wrong[:4])} is not one")
    heads = [key[: -len(_FIRST)] for key in mapping if key.endswith(_FIRST)]
    if len(heads) != 1:
        raise ValueError(f"{name}: holds {len(heads)} cells, under {', '.join(heads[:4])}; give the state_dict of one")
    prefix = heads[0].removesuffix(_BASE)
    foreign = [key for key in mapping if not key.startswith(prefix)]
    if foreign:
        raise ValueError(
            f"{name}: holds {', '.join(foreign[:4])} beside the cell under {prefix!r}; give the cell alone, as in "
            f"from_reference(model.{prefix.rstrip('.')})"
        )
    notes = [f"prefix {prefix!r} taken off the keys"] if prefix else []
    return {key[len(prefix) :]: value for key, value in mapping.items()}, notes


def _build(state: dict[str, Tensor], name: str, options: dict[str, bool], backend: str, batched: bool = False) -> Cell:
    base = _BASE if _BASE + _FIRST in state else ""
    weight = state[base + _FIRST]
    if weight.dim() != 2 or 0 in weight.shape:
        raise ValueError(f"{name}: {base + _FIRST} has shape {list(weight.shape)}, expected [H, F]")
    hidden, channels = weight.shape
    with torch.device("meta"):  # the parameters are replaced at once
        if not base:
            kind: Any = TGCN2 if batched else TGCN
            arguments: tuple[Any, ...] = (channels, hidden)
        else:
            kind = A3TGCN2 if batched else A3TGCN
            attention = state.get(_ATTENTION)
            periods = 1 if attention is None or attention.dim() != 1 else attention.numel()
            arguments = (channels, hidden, periods)
        extra = {"batch_size": None} if batched else {}
        model: Cell = kind(*arguments, **extra, **options, backend=backend)
    check_exactly(model, state, name)
    return model


def _options(module: nn.Module) -> dict[str, bool]:
    """Options of the first convolution; the comparison tells whether the others have the same."""
    conv = next((part for path, part in module.named_modules() if path.endswith("conv_z")), None)
    return {
        option: bool(getattr(conv, option, default))
        for option, default in (("improved", False), ("cached", False), ("add_self_loops", True))
    }


def _shared(module: nn.Module, name: str, options: dict[str, bool], backend: str, batched: bool) -> Cell:
    """The cell with the parameters of `module` itself."""
    named = dict(module.named_parameters(remove_duplicate=False))
    model = _build(dict(named), name, options, backend, batched)
    for key, parameter in named.items():
        _register(model, key, parameter)
    return model


def _register(model: nn.Module, key: str, parameter: nn.Parameter) -> None:
    owner, _, leaf = key.rpartition(".")
    model.get_submodule(owner).register_parameter(leaf, parameter)


def _compare(module: nn.Module, name: str, options: dict[str, bool]) -> bool:
    """Runs copies of both with random parameters; returns whether the module takes a batch.

    Raises:
        ValueError: values or gradients differ, or the module cannot be run.
    """
    cpu = torch.device("cpu")
    generator = torch.Generator(device="cpu").manual_seed(20_011)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64, device="cpu")

    with isolated(cpu):
        theirs = copy.deepcopy(module, cached_results(module)).to_empty(device=cpu).double()
        with torch.no_grad():
            for parameter in theirs.parameters():
                parameter.copy_(random(*parameter.shape)).requires_grad_()
        ours = _shared(theirs, name, options, "reference", batched=False)
        ends = [[0, 1, 2, 3, 4, 5, 6, 0, 2, 2], [1, 2, 0, 4, 3, 6, 5, 3, 2, 4]]
        edge_index = torch.tensor(ends, dtype=torch.int64, device=cpu)
        edge_weight = random(10).abs() + 0.1
        channels, hidden = ours.in_channels, ours.out_channels
        steps = [ours.periods] if isinstance(ours, A3TGCN) else []
        reasons = []
        for lead in ((8,), (2, 8)):
            x, h = random(*lead, channels, *steps), random(*lead, hidden)
            try:
                for training in (False, True):
                    for state in (None, h):
                        runs = [
                            _run(one.train(training), x, edge_index, edge_weight, state, list(theirs.parameters()))
                            for one in (theirs, ours)
                        ]
                        _agree(runs[0], runs[1], name)
            except Different:
                raise
            except Exception as error:
                reasons.append(f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}")
                continue
            return len(lead) == 2 or isinstance(module, (TGCN2, A3TGCN2))
    raise ValueError(f"{name}: cannot be mapped to a T-GCN: it could not be run to compare it: {'; '.join(reasons)}")


def _run(
    model: nn.Module, x: Tensor, edge_index: Tensor, edge_weight: Tensor, h: Tensor | None, parameters: list[Any]
) -> list[Tensor]:
    """The result, and its gradients for inputs and parameters."""
    for part in model.modules():
        if hasattr(part, "_cached_edge_index"):
            setattr(part, "_cached_edge_index", None)  # noqa: B010  # of the graph that the original has seen
    leaves = [x.clone().requires_grad_(), edge_weight.clone().requires_grad_()]
    y = model(leaves[0], edge_index, leaves[1], h)
    if not isinstance(y, Tensor):
        raise TypeError(f"its forward returns a {type(y).__name__}, expected the state")
    seed = torch.linspace(-1, 1, y.numel(), dtype=y.dtype, device="cpu").reshape(y.shape)
    gradients = torch.autograd.grad(y, [*leaves, *parameters], seed, allow_unused=True)
    zeros = [torch.zeros_like(leaf) for leaf in (*leaves, *parameters)]
    return [y.detach(), *(zero if one is None else one for zero, one in zip(zeros, gradients, strict=True))]


def _agree(theirs: list[Tensor], ours: list[Tensor], name: str) -> None:
    for i, (one, other) in enumerate(zip(theirs, ours, strict=True)):
        if one.shape != other.shape:
            raise RuntimeError(f"results of the shapes {list(one.shape)}, expected {list(other.shape)}")
        scale = max(float(other.abs().max()), 1.0)
        difference = float((one - other).abs().max()) / scale
        if not difference <= _TOLERANCE:
            what = "gradients" if i else "results"
            raise Different(
                f"{name}: cannot be mapped to a T-GCN: its {what} differ by {difference:.2g} from those of the cell of "
                "PyTorch Geometric Temporal with the same parameters; take the weights alone if this is meant to fall "
                "away: from_reference(module.state_dict())"
            )
