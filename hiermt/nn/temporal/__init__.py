"""The T-GCN cells of PyTorch Geometric Temporal on the kernels of this package: change the import alone.

Their convolutions read the input and never the state, so that all three of them share one aggregation ``A x``, and the
product of each folds into its gate: ``W_1 (W_conv A x + b_conv) + W_2 h + b = [W_1 W_conv, W_2] [A x, h] + (W_1 b_conv
+ b)``.
"""

from hiermt.nn.temporal.attention import A3TGCN, A3TGCN2
from hiermt.nn.temporal.cell import TGCN, TGCN2

__all__ = ["A3TGCN", "A3TGCN2", "TGCN", "TGCN2"]
