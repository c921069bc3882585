"""The package names device and dtype wherever it creates a tensor or a generator.

Otherwise it would follow ``torch.set_default_device`` and ``torch.set_default_dtype``, which are settings of the
user: index tensors would be on another device than the data. Parameters of modules do follow them, as in torch.nn.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import hiermt

PACKAGE = Path(hiermt.__file__).parent
FACTORIES = {
    *("arange", "as_tensor", "asarray", "empty", "empty_permuted", "empty_strided", "eye", "full", "hann_window"),
    *("linspace", "logspace", "normal", "ones", "rand", "randint", "randn", "randperm", "range", "scalar_tensor"),
    *("sparse_coo_tensor", "sparse_csr_tensor", "tensor", "tril_indices", "triu_indices", "zeros"),
}
# Tensors of the types of old: they ask the defaults, and take neither argument.
REFUSED = {"Tensor", "FloatTensor", "DoubleTensor", "LongTensor", "IntTensor", "BoolTensor", "ByteTensor", "HalfTensor"}


def faults(source: str) -> list[str]:
    """Calls of `source` that leave a device or dtype to the defaults, by line."""
    tree = ast.parse(source)
    parameters = {
        id(argument)
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "Parameter"
        for argument in call.args
    }
    # `from torch import zeros as z` counts as well.
    names = {
        alias.asname or alias.name: alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "torch"
        for alias in node.names
        if alias.name in FACTORIES | {"Generator"}
    }
    found = []
    for call in ast.walk(tree):
        if not isinstance(call, ast.Call) or id(call) in parameters:
            continue
        given = {keyword.arg for keyword in call.keywords}
        if isinstance(call.func, ast.Name) and call.func.id in names:
            name = names[call.func.id]
        elif (
            isinstance(call.func, ast.Attribute)
            and isinstance(call.func.value, ast.Name)
            and call.func.value.id == "torch"
        ):
            name = call.func.attr
        else:
            continue
        wanted = {"device", "dtype"} if name in FACTORIES else {"device"} if name == "Generator" else set()
        if name in REFUSED and call.args:
            found.append(f"{call.lineno}: torch.{name}")
        elif "out" not in given and (missing := wanted - given):
            found.append(f"{call.lineno}: torch.{name} without {' and '.join(sorted(missing))}")
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_factory_call_names_device_and_dtype(path: Path) -> None:
    assert not faults(path.read_text(encoding="utf-8"))


def test_the_rule_sees_what_it_is_for() -> None:
    assert faults("import torch\ntorch.zeros(3)") == ["2: torch.zeros without device and dtype"]
    assert faults("import torch\ntorch.arange(3, device='cpu')") == ["2: torch.arange without dtype"]
    assert faults("from torch import arange as a\na(3)") == ["2: torch.arange without device and dtype"]
    assert faults("import torch\ntorch.Generator()") == ["2: torch.Generator without device"]
    assert faults("import torch\ntorch.LongTensor([1])") == ["2: torch.LongTensor"]
    assert not faults("import torch\nfrom torch import nn\nnn.Parameter(torch.empty(3))")
    assert not faults("import torch\ntorch.zeros(3, device=x.device, dtype=x.dtype)")
