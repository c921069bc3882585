"""State dicts: the entry, prefix and sizes of a T-GCN in a mapping, and the comparison with a model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor

BACKBONE = "tgcn_backbone."
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# Wrappers of torch that add their name to the keys.
_WRAPPERS = {"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"}
# Counter of torch.optim.swa_utils.AveragedModel.
_COUNTERS = {"n_averaged"}
_CONV = re.compile(r"(?:^|(?<=\.))cells\.(\d{1,9})\.gcn\.convs\.(\d{1,9})\.")
_HEAD = re.compile(r"([^\W\d]\w{0,99})_head\.weight")
_DEEPEST = 5


@dataclass(frozen=True)
class Found:
    """A T-GCN in a mapping.

    Attributes:
        state (dict): its tensors under hiermt's names.
        keys (dict): key of each tensor in the mapping.
        prefix (str): prefix removed from the keys.
        two_headed (bool): whether it has a backbone and heads.
        notes (list): steps taken, as text.
    """

    state: dict[str, Tensor]
    keys: dict[str, str]
    prefix: str
    two_headed: bool
    notes: list[str]


def find(content: object, name: str) -> Found:
    """Finds the tensors of one T-GCN in a state dict, or in nested mappings.

    Raises:
        ValueError: there is none, there are several, or keys are left over.
    """
    mapping, path = _mapping(content, name)
    notes = [f"tensors from its entry {path}"] if path else []
    keys: dict[str, str] = {}
    for key in mapping:
        short = ".".join(part for part in key.split(".") if part not in _WRAPPERS)
        if short in keys:
            raise ValueError(f"{name}: has both {keys[short]} and {key}; give the state_dict of one model")
        keys[short] = key
    if list(keys) != list(keys.values()):
        notes.append("'_orig_mod.' and other wrappers taken off the keys")
    heads = sorted({key[: match.start()] for key in keys if (match := _CONV.search(key))})
    if not heads:
        refuse(name, ["no cells.{i}.gcn.convs.{j}.* found"], keys)
    if len(heads) > 1:
        shown = ", ".join(repr(head) for head in heads[:4])
        raise ValueError(f"{name}: holds {len(heads)} models, under {shown}; give the state_dict of one of them")
    two_headed = heads[0] == BACKBONE or heads[0].endswith("." + BACKBONE)
    prefix = heads[0][: -len(BACKBONE)] if two_headed else heads[0]
    if prefix:
        notes.append(f"prefix {prefix!r} taken off the keys")
    foreign = [key for key in keys if not key.startswith(prefix) and key.rpartition(".")[2] not in _COUNTERS]
    if foreign:
        refuse(name, [f"unknown {key} beside the model under {prefix!r}" for key in foreign[:8]], keys)
    keys = {key[len(prefix) :]: whole for key, whole in keys.items() if key.startswith(prefix)}
    return Found({key: mapping[whole] for key, whole in keys.items()}, keys, prefix, two_headed, notes)


def _mapping(content: object, name: str) -> tuple[Mapping[str, Tensor], str]:
    """The mapping with the tensors of cells, and its path."""
    if not isinstance(content, Mapping):
        raise ValueError(
            f"{name}: expected a state_dict, a mapping from names to tensors, got {type(content).__name__}"
        )
    level: list[tuple[str, Mapping[Any, Any]]] = [("", content)]
    seen: dict[int, object] = {id(content): content}
    for _ in range(_DEEPEST):
        with_cells = [(path, mapping) for path, mapping in level if any(_is_conv(key) for key in mapping)]
        if len(with_cells) > 1:
            shown = ", ".join(path for path, _ in with_cells[:6])
            raise ValueError(f"{name}: holds several models, in {shown}; give one of these entries")
        if with_cells:
            path, mapping = with_cells[0]
            wrong = [str(key) for key, value in mapping.items() if not isinstance(value, Tensor)]
            wrong += [repr(key) for key in mapping if not isinstance(key, str)]
            if wrong:
                raise ValueError(
                    f"{name}: expected a state_dict, a mapping from names to tensors; {', '.join(wrong[:4])} is not one"
                )
            return mapping, path
        level = list(_inner(level, seen))
        if not level:
            break
    first = next(iter(content.values()), None)
    if isinstance(first, Tensor) or not content:
        refuse(name, ["no cells.{i}.gcn.convs.{j}.* found"], content)
    raise ValueError(
        f"{name}: expected a state_dict, a mapping from names to tensors, or a mapping with one inside; found neither "
        f"under {', '.join(str(key) for key in list(content)[:8])}"
    )


def _inner(
    level: Iterable[tuple[str, Mapping[Any, Any]]], seen: dict[int, object]
) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    for path, mapping in level:
        for key, value in mapping.items():
            # A mapping in a file may contain itself. What was seen is kept, so that no other takes its id.
            if isinstance(value, Mapping) and id(value) not in seen:
                seen[id(value)] = value
                yield f"{path}[{key!r}]", value


def _is_conv(key: object) -> bool:
    # Bounds the time of the search.
    return isinstance(key, str) and len(key) < 1000 and _CONV.search(key) is not None


def sizes(found: Found, name: str) -> dict[str, Any]:
    """Constructor arguments that follow from names and shapes; ``conv_activation`` and ``layout`` do not.

    Raises:
        ValueError: no model has these names and shapes.
    """
    prefix = BACKBONE if found.two_headed else ""
    state = {key[len(prefix) :]: value for key, value in found.state.items() if key.startswith(prefix)}
    convs: dict[int, set[int]] = {}
    for key in state:
        if match := _CONV.match(key):
            convs.setdefault(int(match[1]), set()).add(int(match[2]))
    layers, depth = len(convs), len(convs.get(0, ()))
    if set(convs) != set(range(layers)):
        refuse(name, [f"cells are numbered {_shown(convs)}, expected 0 to {layers - 1}"], state)
    for i, numbers in convs.items():
        if numbers != set(range(depth)):
            refuse(name, [f"cells.{i} has the convolutions {_shown(numbers)}, expected 0 to {depth - 1}"], state)
    first = "cells.0.gcn.convs.0."
    att = state.get(first + "att")
    if att is not None and (att.dim() != 3 or att.size(0) != 1 or att.size(1) != 1):
        refuse(name, [f"{first}att has shape {list(att.shape)}; only one head, [1, 1, H], is supported"], state)
    edge = state.get(first + "lin_edge.weight")
    if edge is not None and (edge.dim() != 2 or edge.size(1) != 1):
        features = edge.shape[-1] if edge.dim() else 0
        refuse(name, [f"{first}lin_edge.weight reads {features} edge features; only 1 is supported"], state)
    hidden, in_channels = _shape(state, first + ("lin.weight" if att is None else "lin_l.weight"), name)
    result: dict[str, Any] = {
        "in_channels": in_channels,
        "hidden_size": hidden,
        "layers_nb": layers,
        "use_gat": att is not None,
        "conv_layers": depth,
        "edge_dim": None if edge is None else 1,
    }
    if not found.two_headed:
        result["out_channels"] = _shape(state, "out.0.weight", name)[0]
    if min(in_channels, hidden, result.get("out_channels", 1)) < 1:
        refuse(name, [f"a size is 0: {result}"], state)
    return result


def head_sizes(found: Found, hidden: int) -> dict[str, int]:
    """Number of classes of each head that reads `hidden` channels, by the name of its task."""
    matches = ((_HEAD.fullmatch(key), value) for key, value in found.state.items())
    return {match[1]: value.size(0) for match, value in matches if match and value.shape[1:] == (hidden,)}


def check_tensors(state: Mapping[str, Tensor], name: object, *, values: bool = True) -> torch.dtype:
    """The common floating point dtype of the tensors.

    Raises:
        ValueError: the dtypes differ or no model computes in them, or, if `values`, a tensor has no values.
    """
    first: tuple[str, torch.dtype] | None = None
    for key, tensor in state.items():
        if tensor.dtype not in DTYPES:
            raise ValueError(f"{name}: {key} is {tensor.dtype}, expected float32, float64, bfloat16 or float16")
        if tensor.layout is not torch.strided:
            raise ValueError(f"{name}: {key} is {tensor.layout}; give a dense tensor, {key}.to_dense()")
        if values and tensor.is_meta:
            raise ValueError(f"{name}: {key} is on the device 'meta', where tensors have no values")
        if values and tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise ValueError(f"{name}: {key} repeats one value through a stride of 0; store it with .contiguous()")
        first = first or (key, tensor.dtype)
        if tensor.dtype != first[1]:
            raise ValueError(
                f"{name}: {first[0]} is {first[1]}, {key} is {tensor.dtype}; convert the model to one type before it "
                "is saved, as with model.float()"
            )
    if first is None:
        raise ValueError(f"{name}: cannot be mapped to a T-GCN: it holds no tensors")
    return first[1]


def check_exactly(model: Any, state: dict[str, Tensor], source: object) -> None:
    """Compares the names and shapes of `state` with those of `model`.

    Raises:
        ValueError: lists missing and unknown names and wrong shapes.
    """
    own = model.state_dict()
    problems = [f"missing {key}" for key in own if key not in state]
    problems += [f"unknown {key}" for key in state if key not in own]
    problems += [
        f"{key} has shape {list(state[key].shape)}, expected {list(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    reason = kind_mismatch(own, state)
    if reason:
        problems = [reason]
    if problems:
        raise ValueError(f"{source}: does not fit the model: {'; '.join(problems)}")


def load_exactly(model: Any, state: dict[str, Tensor], source: object) -> None:
    """Loads `state` if its names and shapes are exactly those of `model`; else the model remains unchanged.

    Raises:
        ValueError: lists missing and unknown names and wrong shapes.
    """
    check_exactly(model, state, source)
    model.load_state_dict(state, strict=True)


def kind_mismatch(own: Iterable[str], given: Iterable[str]) -> str:
    """The reason if one set of keys is of a GCN and the other of a GATv2; else an empty string."""
    kinds = [{"GATv2" if key.endswith(".att") else "GCN" for key in keys if _is_kind(key)} for keys in (own, given)]
    if kinds[0] == {"GATv2"} and kinds[1] == {"GCN"}:
        return "the tensors are of GCN convolutions, the model has GATv2: build it with use_gat=False"
    if kinds[0] == {"GCN"} and kinds[1] == {"GATv2"}:
        return "the tensors are of GATv2 convolutions, the model has GCN (use_gat=False): build it with use_gat=True"
    return ""


def _is_kind(key: str) -> bool:
    return ".convs." in key and key.endswith((".att", ".lin.weight"))


def _shown(numbers: Iterable[int]) -> str:
    found = sorted(numbers)
    return ", ".join(map(str, found[:8])) + (", ..." if len(found) > 8 else "")


def _shape(state: Mapping[str, Tensor], key: str, name: str) -> tuple[int, int]:
    tensor = state.get(key)
    if tensor is None or tensor.dim() != 2:
        refuse(name, [f"missing {key}" if tensor is None else f"{key} has shape {list(tensor.shape)}"], state)
    return tensor.size(0), tensor.size(1)


def refuse(name: str, problems: list[str], state: Iterable[Any]) -> NoReturn:
    """Raises ``ValueError`` with the problems and some keys."""
    known = ", ".join(str(key) for _, key in zip(range(8), state, strict=False)) or "nothing"
    raise ValueError(f"{name}: cannot be mapped to a T-GCN: {'; '.join(problems)} (it holds: {known})")
