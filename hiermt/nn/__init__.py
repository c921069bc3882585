"""The modules of the package: convolution stacks, the T-GCN cell, the backbones and the models with heads."""

from hiermt.nn.attention import A3TGCN
from hiermt.nn.backbone import LAYOUTS, TGCN
from hiermt.nn.cell import TGCNCell
from hiermt.nn.conv import GAT, GCN
from hiermt.nn.multi_task import MultiTaskTGCN
from hiermt.nn.two_headed import TGCN_HierarchicalMT

__all__ = ["A3TGCN", "GAT", "GCN", "LAYOUTS", "TGCN", "MultiTaskTGCN", "TGCNCell", "TGCN_HierarchicalMT"]
