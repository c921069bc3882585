"""``from_reference``: conversion of PyG modules, state dicts and checkpoint files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hiermt.io import temporal
from hiermt.io.checkpoint import CONFIG, read_config
from hiermt.io.probe import Different, agree
from hiermt.io.state_dicts import BACKBONE, Found, check_exactly, check_tensors, find, head_sizes, refuse, sizes
from hiermt.io.tensor_files import read_tensor_file
from hiermt.nn import A3TGCN, TGCN, MultiTaskTGCN, TGCN_HierarchicalMT

Model = TGCN_HierarchicalMT | MultiTaskTGCN | TGCN
_KINDS: tuple[type[Model], ...] = (TGCN_HierarchicalMT, MultiTaskTGCN, A3TGCN, TGCN)
_TWO_HEADS = {"signal": 2, "direction": 2}

# Wrapper modules by class name, which needs neither their packages nor devices, and their inner module.
_WRAPPERS = {
    "OptimizedModule": "_orig_mod",
    "DistributedDataParallel": "module",
    "DataParallel": "module",
    "AveragedModel": "module",
}
_UNSEEN = (
    "Assumed, since names and shapes do not determine them: conv_activation={!r}; u of the gates keeps the "
    "old state, h = u * h + (1 - u) * c; {}; no output activation, no dropout; x as [{}]"
)
_UNSEEN_CONV = {
    True: "negative_slope=0.2, self loops with the mean weight",
    False: "improved=False, normalised with self loops",
}


def from_reference(
    source: nn.Module | Mapping[str, Any] | str | os.PathLike[str],
    *,
    layout: str | None = None,
    conv_activation: str | None = None,
    backend: str = "auto",
    verbose: bool = True,
) -> Model | temporal.Cell:
    r"""Converts a model that runs on PyG; every hyper-parameter is inferred from names and shapes.

    Given a module, the new model shares its ``Parameter`` objects, so an optimizer over either trains both. Copies of
    both run on a small random graph, in evaluation and in training mode, and the module is refused unless values and
    gradients agree. Wrappers (``torch.compile``, ``DataParallel``, ``DistributedDataParallel``) are removed. Given a
    state dict or a file (``.safetensors``, ``.pt``, ``.pth``, ``.ckpt``, or a folder written by ``save_pretrained``),
    the new model holds copies, and options that the names do not determine are assumed and printed. The tensors may be
    nested in an entry such as ``"state_dict"`` or ``"model"``, and have a common prefix such as ``"module."``.

    A foreign checkpoint does not name its features, so the new model accepts any. One trained on the published data
    expects those of :data:`hiermt.data.FEATURES`, in that order; assign them to ``model.feature_names`` to have others
    refused.

    Args:
        source (Module, mapping or path): model with heads, bare T-GCN or A3T-GCN, whose module takes ``(x, edge_index,
            edge_weight)``; or a ``TGCN``, ``TGCN2``, ``A3TGCN`` or ``A3TGCN2`` of PyTorch Geometric Temporal, which
            become those of :mod:`hiermt.nn.temporal`.
        layout (str, optional): order of x in the new model. (default: ``None``: that of a folder or a hiermt model;
            else ``"NFT"``, as published modules read ``[N, F, T]``)
        conv_activation (str, optional): place of the leaky_relu. (default: ``None``: that of a folder or of a run of
            the module; else ``"after"`` for one convolution, ``"between"`` for more)
        backend (str): implementation. (default: ``"auto"``)
        verbose (bool): print the inferred hyper-parameters. (default: ``True``)

    Raises:
        ValueError: lists every parameter that cannot be mapped, or says by how much the results of the module differ,
            or why it could not be run.
        TypeError: `source` has another type.
        FileNotFoundError: the file does not exist.
    """
    if isinstance(source, nn.Module):
        module = _unwrapped(source)
        name, content = type(module).__name__, module.state_dict()
        temporal.refuse_other_families([type(part).__name__ for part in module.modules()], content, name)
        if temporal.find_cell(content) is not None:
            return _cell(*temporal.from_module(module, name, backend), layout, conv_activation, verbose)
        model, notes = _from_module(module, layout, conv_activation, backend)
    elif isinstance(source, Mapping):
        if (cell := _cell_of_state(source, "the state_dict", backend)) is not None:
            return _cell(*cell, layout, conv_activation, verbose)
        model, notes = _from_state(source, "the state_dict", layout, conv_activation, backend)
    elif isinstance(source, (str, os.PathLike)):
        path = Path(source)
        if (path / CONFIG).is_file():
            given = {"layout": layout, "conv_activation": conv_activation}
            return _from_folder(path, backend, {k: v for k, v in given.items() if v is not None})
        content, _ = read_tensor_file(path)
        if (cell := _cell_of_state(content, str(path), backend)) is not None:
            return _cell(*cell, layout, conv_activation, verbose)
        model, notes = _from_state(content, str(path), layout, conv_activation, backend)
    else:
        raise TypeError(f"source: expected a Module, a state_dict or a path, got {type(source).__name__}")
    if verbose:
        found = ", ".join(f"{key}={value!r}" for key, value in model.config.items())
        print("\n  ".join([f"hiermt.from_reference: {type(model).__name__}({found})", *notes]))
    return model


def _cell_of_state(content: object, name: str, backend: str) -> tuple[temporal.Cell, list[str]] | None:
    """A cell of PyTorch Geometric Temporal, if `content`, which may be anything in a file, is the state of one."""
    if not isinstance(content, Mapping):
        return None
    found = temporal.find_cell(content)
    if found is not None:
        return temporal.from_state(found, name, backend)
    for mapping in (content, *(value for value in content.values() if isinstance(value, Mapping))):
        temporal.refuse_other_families((), mapping, name)
    return None


def _cell(
    model: temporal.Cell, notes: list[str], layout: str | None, conv_activation: str | None, verbose: bool
) -> temporal.Cell:
    for name, value in (("layout", layout), ("conv_activation", conv_activation)):
        if value is not None:
            raise ValueError(f"{name}: a cell of PyTorch Geometric Temporal has none; leave it out")
    if verbose:
        sizes = f"in_channels={model.in_channels}, out_channels={model.out_channels}, improved={model.improved}"
        print("\n  ".join([f"hiermt.from_reference: nn.temporal.{type(model).__name__}({sizes})", *notes]))
    return model


def _from_folder(folder: Path, backend: str, changes: dict[str, Any]) -> Model:
    name = read_config(folder).get("model")
    for kind in _KINDS:
        if name == kind.__name__:
            return kind._load(folder, backend, changes)
    kinds = ", ".join(kind.__name__ for kind in _KINDS)
    raise ValueError(f"{folder / CONFIG}: model: expected one of {kinds}, got {name!r}")


def _unwrapped(module: nn.Module) -> nn.Module:
    """The module inside ``torch.compile``, ``DistributedDataParallel`` and similar wrappers."""
    while True:
        inner = getattr(module, _WRAPPERS.get(type(module).__name__, ""), None)
        if not isinstance(inner, nn.Module):
            return module
        module = inner


def _from_module(
    module: nn.Module, layout: str | None, conv_activation: str | None, backend: str
) -> tuple[Model, list[str]]:
    name = type(module).__name__
    if any(nn.parameter.is_lazy(tensor) for tensor in (*module.parameters(), *module.buffers())):
        raise ValueError(f"{name}: has parameters without a shape yet; run it once on some data")
    found = find(dict(module.state_dict()), name)
    arguments = sizes(found, name)
    check_tensors(found.state, name, values=False)
    own = module if isinstance(module, _KINDS) else None
    choices = ("between", "after") if conv_activation is None else (conv_activation,)
    build = partial(_build, found, arguments, name)
    build(module, choices[0])  # raises for names and shapes before anything runs
    suspects = _suspects(module, found)
    way_out = (
        " If this is meant to fall away, take the weights alone: from_reference(module.state_dict(), "
        "conv_activation=..., layout=...)."
    )
    try:
        weighted = not arguments["use_gat"] or arguments["edge_dim"] is not None
        agreement = agree(module, partial(build, layout="NTF"), choices, arguments["in_channels"], weighted)
    except Different as error:
        seen = [*suspects, *_hints(module)]
        reason = f" It was seen that {'; '.join(seen[:6])}." if seen else ""
        raise ValueError(f"{name}: cannot be mapped to a T-GCN: {error}.{reason}{way_out}") from None
    if suspects:
        raise ValueError(f"{name}: cannot be mapped to a T-GCN: {'; '.join(suspects)}.{way_out}")
    chosen = layout or (own.config["layout"] if own is not None else "NFT")
    model = build(module, agreement.conv_activation, layout=chosen, backend=backend)
    # An assumed order of x: warn of an x that fits both.
    _assume_layout(model, layout is None and own is None and agreement.layout != chosen)
    if own is not None:
        model.feature_names = own.feature_names
    _take_modes(model, module, found)
    notes = [*found.notes, f"compared with a run of {name}: the same values and gradients"]
    if conv_activation is None:
        notes.append(f"inferred from it: conv_activation={agreement.conv_activation!r}")
    if agreement.layout != chosen:
        notes.append(
            f"{name} takes x as [{', '.join(agreement.layout)}], the new model as [{', '.join(chosen)}]; "
            f"layout={agreement.layout!r} keeps the order"
        )
    if any(part._forward_hooks or part._forward_pre_hooks for part in module.modules()):
        notes.append("its hooks stay behind; they changed no value")
    return model, notes


def _from_state(
    content: object, name: str, layout: str | None, conv_activation: str | None, backend: str
) -> tuple[Model, list[str]]:
    found = find(content, name)
    arguments = sizes(found, name)
    check_tensors(found.state, name)
    activation = conv_activation or ("after" if arguments["conv_layers"] == 1 else "between")
    model = _build(found, arguments, name, None, activation, layout=layout or "NFT", backend=backend)
    _assume_layout(model, layout is None)
    unseen = _UNSEEN.format(activation, _UNSEEN_CONV[arguments["use_gat"]], ", ".join(layout or "NFT"))
    return model, [*found.notes, unseen]


def _build(
    found: Found,
    arguments: dict[str, Any],
    name: str,
    module: nn.Module | None,
    conv_activation: str,
    *,
    layout: str = "NTF",
    backend: str = "reference",
) -> Model:
    """A model with the parameters of `module`, or with copies of the tensors found."""
    model: Model
    # The parameters are replaced at once: allocate no memory and draw no random numbers.
    with torch.device("meta"):
        options: dict[str, Any] = {"conv_activation": conv_activation, "layout": layout, "backend": backend}
        heads = head_sizes(found, arguments["hidden_size"])
        if found.two_headed and (heads == _TWO_HEADS or heads.keys() < _TWO_HEADS.keys()):
            model = TGCN_HierarchicalMT(**arguments, **options)
        elif found.two_headed:
            model = MultiTaskTGCN(**arguments, heads=heads, **options)
        else:
            parts = [] if module is None else _after_linear(module, found)
            activation = parts[0] if len(parts) == 1 else nn.Sequential(*parts) if parts else None
            kind = A3TGCN if "attention.0.weight" in found.state else TGCN
            model = kind(**arguments, output_activation=activation, **options)
    check_exactly(model, found.state, name)
    given = _copies(found.state) if module is None else _parameters(module, found, name)
    for key, parameter in given.items():
        owner, _, leaf = key.rpartition(".")
        model.get_submodule(owner).register_parameter(leaf, parameter)
    return model


def _parameters(module: nn.Module, found: Found, name: str) -> dict[str, nn.Parameter]:
    named = dict(module.named_parameters(remove_duplicate=False))
    result: dict[str, nn.Parameter] = {}
    for key, whole in found.keys.items():
        parameter = named.get(whole)
        if isinstance(parameter, nn.Parameter):
            result[key] = parameter
        elif not key.startswith("out."):  # the output activation brings its buffers
            refuse(name, [f"{whole} is not a Parameter"], found.state)
    return result


def _take_modes(model: nn.Module, module: nn.Module, found: Found) -> None:
    """Copies training or evaluation mode part by part; a shared output activation keeps its own."""
    modes = {path: part.training for path, part in module.named_modules()}
    default = modes.get(found.prefix.rstrip("."), module.training)
    theirs = set(module.modules())
    for path, part in model.named_modules():
        if part not in theirs:
            part.training = modes.get(found.prefix + path, default) if path else default


def _copies(state: Mapping[str, Tensor]) -> dict[str, nn.Parameter]:
    """Copies of the tensors; a tensor under two names stays shared."""
    made: dict[Any, nn.Parameter] = {}
    result = {}
    for key, tensor in state.items():
        same = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if same not in made:
            made[same] = nn.Parameter(tensor.detach().clone(memory_format=torch.contiguous_format))
        result[key] = made[same]
    return result


def _after_linear(module: nn.Module, found: Found) -> list[nn.Module]:
    """The modules after the output linear, without identities."""
    try:
        out = module.get_submodule(found.prefix + (BACKBONE if found.two_headed else "") + "out")
    except AttributeError:
        return []
    parts = list(out.children())[1:] if isinstance(out, nn.Sequential) else []
    return [part for part in parts if not isinstance(part, nn.Identity)]


def _assume_layout(model: Model, assumed: bool) -> None:
    backbone = model if isinstance(model, TGCN) else model.tgcn_backbone
    backbone.layout_assumed = assumed


# Options of PyG convolutions that no parameter shows, and the value that is supported.
_GATV2_OPTIONS = {
    "heads": 1,
    "negative_slope": 0.2,
    "dropout": 0.0,
    "add_self_loops": True,
    "fill_value": "mean",
    "flow": "source_to_target",
}
_GCN_OPTIONS = {"improved": False, "add_self_loops": True, "normalize": True, "flow": "source_to_target"}
_OPTIONS = {"GATv2Conv": _GATV2_OPTIONS, "GCNConv": _GCN_OPTIONS}


def _suspects(module: nn.Module, found: Found) -> list[str]:
    """Unsupported options of PyG convolutions and activations after the output linear."""
    problems = []
    for path, part in module.named_modules():
        for option, wanted in _OPTIONS.get(type(part).__name__, {}).items():
            value = getattr(part, option, wanted)
            if value != wanted:
                problems.append(f"{path} has {option}={value!r}, only {wanted!r} is supported")
        aggregation = getattr(part, "aggr", None)
        if type(part).__name__ in _OPTIONS and aggregation not in (None, "add", "sum"):
            problems.append(f"{path} has aggr={aggregation!r}, only 'add' is supported")
    if found.two_headed:
        problems += [
            f"tgcn_backbone.out ends in {type(part).__name__}, the two-headed model has no activation there"
            for part in _after_linear(module, found)
        ]
    return problems


def _hints(module: nn.Module) -> list[str]:
    """Possible causes of a difference."""
    hints = []
    for path, part in module.named_modules():
        name = path or "the module"
        if "forward" in vars(part):
            hints.append(f"{name} has a patched forward, which in a copy may still work on the original")
        if part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks:
            hints.append(f"{name} has hooks")
        if isinstance(part, nn.modules.dropout._DropoutNd) and part.p > 0:
            hints.append(f"{name} is a {type(part).__name__} of {part.p}")
    return hints
