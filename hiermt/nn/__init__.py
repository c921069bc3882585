"""The modules of the package: the convolution stacks, the T-GCN cell, the backbone and the two-headed model."""

from hiermt.nn.backbone import LAYOUTS, TGCN
from hiermt.nn.cell import TGCNCell
from hiermt.nn.conv import GAT, GCN
from hiermt.nn.two_headed import TGCN_HierarchicalMT

__all__ = ["GAT", "GCN", "LAYOUTS", "TGCN", "TGCNCell", "TGCN_HierarchicalMT"]
