"""Taking over a model that already exists: PyG modules, state dicts, checkpoint files."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from hiermt.checkpoint import CONFIG, load_exactly, load_model, read_tensors
from hiermt.nn import TGCN, TGCN_HierarchicalMT

_BACKBONE = "tgcn_backbone."
_CELL = re.compile(r"cells\.(\d+)\.")
_CONV = re.compile(r"cells\.0\.gcn\.convs\.(\d+)\.")


def from_reference(
    source: nn.Module | Mapping[str, Tensor] | str | os.PathLike[str],
    *,
    layout: str | None = None,
    conv_activation: str | None = None,
    backend: str = "auto",
    verbose: bool = True,
) -> TGCN_HierarchicalMT | TGCN:
    r"""Builds the same model from one that runs on PyG; every hyper-parameter follows from names and shapes.

    Given a module, the new model holds the very same ``Parameter`` objects, so an optimizer over either trains
    both. Given a state dict or a file (``.safetensors``, ``.pt``, ``.pth``, or a folder written by
    ``save_pretrained``), it holds copies.

    A foreign checkpoint does not say which features it was trained on, so the new model takes any. One trained on the
    published data expects those of :data:`hiermt.data.FEATURES`, in that order; assign them to ``model.feature_names``
    to have others refused.

    Args:
        source (Module, mapping or path): two-headed model or bare backbone.
        layout (str, optional): order of x that the new model takes. (default: ``None``: what a folder says; else
            ``"NFT"``, as the modules in use take ``[N, F, T]``)
        conv_activation (str, optional): no parameter tells where the leaky_relu stands. (default: ``None``: what a
            folder says, or a module that has the attribute; else ``"after"`` for one convolution, ``"between"`` for
            more)
        backend (str): who computes. (default: ``"auto"``)
        verbose (bool): print what was inferred. (default: ``True``)

    Raises:
        ValueError: lists every parameter that cannot be mapped.
        TypeError: `source` is none of the above.
        FileNotFoundError: the file is not there.
    """
    if isinstance(source, (str, os.PathLike)) and (Path(source) / CONFIG).is_file():
        given = {"layout": layout, "conv_activation": conv_activation}
        changes = {key: value for key, value in given.items() if value is not None}
        return load_model(Path(source), backend=backend, **changes)
    layout = "NFT" if layout is None else layout
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        return _build(read_tensors(path), str(path), None, layout, conv_activation, backend, verbose)
    if isinstance(source, nn.Module):
        return _build(
            dict(source.state_dict()),
            type(source).__name__,
            source,
            layout,
            conv_activation,
            backend,
            verbose,
        )
    if isinstance(source, Mapping):
        return _build(dict(source), "the state_dict", None, layout, conv_activation, backend, verbose)
    raise TypeError(f"source: expected a Module, a state_dict or a path, got {type(source).__name__}")


def _build(
    state: dict[str, Tensor],
    name: str,
    module: nn.Module | None,
    layout: str,
    conv_activation: str | None,
    backend: str,
    verbose: bool,
) -> TGCN_HierarchicalMT | TGCN:
    two_headed = any(key.startswith(_BACKBONE) for key in state)
    prefix = _BACKBONE if two_headed else ""
    backbone = {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
    sizes = _sizes(backbone, name)
    _check_mathematics(module, name)
    sizes["conv_activation"] = conv_activation or _conv_activation(module, int(sizes["conv_layers"]))
    sizes |= {"layout": layout, "backend": backend}
    model: TGCN_HierarchicalMT | TGCN
    # Whatever the default device is: what is loaded onto "meta" is lost.
    with torch.device("cpu"):
        if two_headed:
            model = TGCN_HierarchicalMT(**sizes)
        else:
            out = getattr(module, "out", None)
            activation = out[1] if isinstance(out, nn.Sequential) and len(out) > 1 else None
            out_channels = _shape(backbone, "out.0.weight", name)[0]
            model = TGCN(**sizes, out_channels=out_channels, output_activation=activation)
    load_exactly(model, state, name)
    _adopt(model, state, module)
    if isinstance(module, (TGCN, TGCN_HierarchicalMT)):
        model.feature_names = module.feature_names
    if verbose:
        found = ", ".join(f"{key}={value!r}" for key, value in model.config.items())
        print(f"hiermt.from_reference: {type(model).__name__}({found})")
    return model


def _sizes(state: dict[str, Tensor], name: str) -> dict[str, Any]:
    """Constructor arguments that follow from the names and shapes of a backbone's parameters."""
    cells = {int(match[1]) for key in state if (match := _CELL.match(key))}
    convs = {int(match[1]) for key in state if (match := _CONV.match(key))}
    if not cells or not convs:
        _refuse(name, ["no cells.{i}.gcn.convs.{j}.* found"], state)
    first = "cells.0.gcn.convs.0."
    att = state.get(first + "att")
    use_gat = att is not None
    if att is not None and (att.dim() != 3 or att.size(0) != 1 or att.size(1) != 1):
        _refuse(name, [f"{first}att has shape {list(att.shape)}; only one head, [1, 1, H], is supported"], state)
    edge = state.get(first + "lin_edge.weight")
    if edge is not None and edge.shape[-1] != 1:
        _refuse(name, [f"{first}lin_edge.weight reads {edge.shape[-1]} edge features; only 1 is supported"], state)
    hidden, in_channels = _shape(state, first + ("lin_l.weight" if use_gat else "lin.weight"), name)
    return {
        "in_channels": in_channels,
        "hidden_size": hidden,
        "layers_nb": max(cells) + 1,
        "use_gat": use_gat,
        "conv_layers": max(convs) + 1,
        "edge_dim": None if edge is None else 1,
    }


# What a PyG convolution may be told that no parameter shows, and the only value that means the same here.
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


def _check_mathematics(module: nn.Module | None, name: str) -> None:
    """Refuses a module whose attributes make it compute something else than its parameters tell."""
    problems = []
    for path, part in module.named_modules() if module is not None else ():
        for option, wanted in _OPTIONS.get(type(part).__name__, {}).items():
            found = getattr(part, option, wanted)
            if found != wanted:
                problems.append(f"{path} has {option}={found!r}, only {wanted!r} is supported")
        aggregation = getattr(part, "aggr", None)
        if type(part).__name__ in _OPTIONS and aggregation not in (None, "add", "sum"):
            problems.append(f"{path} has aggr={aggregation!r}, only 'add' is supported")
    out = getattr(getattr(module, "tgcn_backbone", None), "out", None)
    if isinstance(out, nn.Sequential) and len(out) > 1:
        problems.append(
            f"tgcn_backbone.out ends in {type(out[1]).__name__}, the two-headed model has no activation there"
        )
    if problems:
        raise ValueError(f"{name}: cannot be mapped to a T-GCN: {'; '.join(problems)}")


def _shape(state: dict[str, Tensor], key: str, name: str) -> tuple[int, int]:
    tensor = state.get(key)
    if tensor is None or tensor.dim() != 2:
        _refuse(name, [f"missing {key}" if tensor is None else f"{key} has shape {list(tensor.shape)}"], state)
    return tensor.size(0), tensor.size(1)


def _refuse(name: str, problems: list[str], state: dict[str, Tensor]) -> NoReturn:
    known = ", ".join(list(state)[:8]) or "nothing"
    raise ValueError(f"{name}: cannot be mapped to a T-GCN: {'; '.join(problems)} (it holds: {known})")


def _conv_activation(module: nn.Module | None, conv_layers: int) -> str:
    for part in module.modules() if module is not None else ():
        value = getattr(part, "conv_activation", None)
        if isinstance(value, str):
            return value
    return "after" if conv_layers == 1 else "between"


def _adopt(model: nn.Module, state: dict[str, Tensor], module: nn.Module | None) -> None:
    """Takes over dtype and device; with a module, its Parameter objects too."""
    if module is None:
        model.to(next(iter(state.values())).dtype)
        load_exactly(model, state, "the state_dict")
        return
    for key, parameter in module.named_parameters(remove_duplicate=False):
        owner_name, _, leaf = key.rpartition(".")
        model.get_submodule(owner_name).register_parameter(leaf, parameter)
    model.train(module.training)
