"""Writes the golden checkpoints of this version: ``python tests/model/golden.py``. Run it once a release."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

import hiermt
from hiermt.testing import stock_graph

FOLDER = Path(__file__).parent / "golden"
MODELS = {
    "gatv2": lambda: hiermt.TGCN_HierarchicalMT(3, 4),
    "gatv2-single": lambda: hiermt.TGCN_HierarchicalMT(
        3, 4, conv_layers=1, edge_dim=None, conv_activation="after", layout="NFT"
    ),
    "gcn": lambda: hiermt.TGCN_HierarchicalMT(3, 4, use_gat=False, feature_names=["a", "b", "c"]),
    "backbone": lambda: hiermt.TGCN(3, 2, 4, layers_nb=1, layout="NTF"),
}


def main() -> None:
    for name, make in MODELS.items():
        torch.manual_seed(0)
        model = make()
        folder = FOLDER / hiermt.__version__ / name
        model.save_pretrained(folder)
        edge_index, edge_weight = stock_graph(6, 12, isolated=1)
        x = torch.randn(6, 3, 5) if model.layout == "NFT" else torch.randn(6, 5, 3)
        weight = None if model.config["use_gat"] and model.config["edge_dim"] is None else edge_weight
        output = model(x, edge_index, weight)
        outputs = output if isinstance(output, tuple) else (output,)
        tensors = {f"output{i}": each.detach().contiguous() for i, each in enumerate(outputs)}
        tensors |= {"x": x, "edge_index": edge_index} | ({} if weight is None else {"edge_weight": weight})
        save_file(tensors, folder / "expected.safetensors")


if __name__ == "__main__":
    main()
