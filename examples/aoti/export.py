"""Packages a model with AOTInductor, for programs without Python; decide.cpp runs the package.

    python examples/aoti/export.py model.pt2
    cmake -S examples/aoti -B build/aoti -DCMAKE_BUILD_TYPE=Release \
        -DCMAKE_PREFIX_PATH="$(python -c 'import torch; print(torch.utils.cmake_prefix_path)')"
    cmake --build build/aoti
    build/aoti/decide "$(python -c 'from hiermt import _C; print(_C.LIBRARY)')" model.pt2 100 25 13

Nodes, edges and time steps are left open, so that one package serves every market. AOTInductor compiles with the C++
compiler of the machine.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim

import hiermt

FEATURES = 13


def example(nodes: int, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """The input of decide.cpp: sin(0), sin(1), ... over a ring of stocks."""
    x = torch.arange(nodes * steps * FEATURES, dtype=torch.float64).sin().float().view(nodes, steps, FEATURES)
    source = torch.arange(nodes)
    return x, torch.stack([source, (source + 1) % nodes]), torch.full((nodes,), 0.5)


def package(model: nn.Module, path: Path) -> None:
    """Exports `model` with open sizes and compiles it into one file.

    Args:
        model: in evaluation mode, on the device where the program runs it.
        path: file to write, ``.pt2``.
    """
    edges = Dim("edges")
    shapes = ({0: Dim("nodes"), 1: Dim("steps")}, {1: edges}, {0: edges})
    with torch.no_grad():
        program = torch.export.export(model, example(12, 6), dynamic_shapes=shapes)
        torch._inductor.aoti_compile_and_package(program, package_path=str(path))


def main() -> None:
    """Writes a package of a model with random weights, and the first logits for comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, help="file to write, such as model.pt2")
    args = parser.parse_args()
    torch.manual_seed(0)
    model = hiermt.TGCN_HierarchicalMT(FEATURES, 16).eval()
    package(model, args.path)
    with torch.no_grad():
        signal, direction = model(*example(100, 25))
    for row in torch.cat([signal, direction], 1).tolist():
        print(*(f"{value:.9g}" for value in row))


if __name__ == "__main__":
    main()
