"""Operators and twins under positional signatures: a convolution, a scan, a layer and the kind of its convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

from torch import Tensor

import hiermt.reference
from hiermt.native import extension


class Calls:
    """What `module` (``hiermt.ops`` or ``hiermt.reference``) has, and a convolution or a scan over windows alone."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

    def gatv2_conv(
        self,
        x: Tensor,
        csr: Sequence[Tensor],
        edge_weight: Tensor | None,
        params: Sequence[Tensor],
        lin_edge: Tensor | None,
        activation: int,
    ) -> Tensor:
        every = [*params] if lin_edge is None else [*params, lin_edge]
        weight = None if lin_edge is None else edge_weight
        return self._module.conv_stack(x, csr, weight, every, conv_layers=1, activation=activation)  # type: ignore[no-any-return]

    def gcn_conv(
        self, x: Tensor, csr: Sequence[Tensor], norm: Tensor, params: Sequence[Tensor], activation: int
    ) -> Tensor:
        return self._module.conv_stack(x, csr, norm, params, conv_layers=1, activation=activation)  # type: ignore[no-any-return]

    def gated_scan(
        self,
        x: Tensor,
        g: Tensor,
        h0: Tensor | None,
        gates: Sequence[Tensor],
        sequence: bool,
        starts: Tensor | None = None,
        steps: int = 0,
    ) -> Tensor:
        return self._module.gated_scan(x, g, h0, gates, starts, steps=steps, sequence=sequence)  # type: ignore[no-any-return]

    def gated_scan_windows(
        self, x: Tensor, g: Tensor, starts: Tensor, steps: int, gates: Sequence[Tensor], sequence: bool
    ) -> Tensor:
        return self.gated_scan(x, g, None, gates, sequence, starts, steps)

    def tgcn_layer(
        self,
        x: Tensor,
        csr: Sequence[Tensor],
        edge_weight: Tensor | None,
        conv_params: Sequence[Tensor],
        gate_params: Sequence[Tensor],
        conv_layers: int,
        gat: bool,
        edge: bool,
        between: bool,
        sequence: bool,
        starts: Tensor | None = None,
        steps: int = 0,
        h0: Tensor | None = None,
    ) -> Tensor:
        weight = None if gat and not edge else edge_weight
        flags = {"conv_layers": conv_layers, "between": between, "sequence": sequence, "steps": steps}
        return self._module.tgcn_layer(x, csr, weight, conv_params, gate_params, h0, starts, **flags)  # type: ignore[no-any-return]


reference: Any = Calls(hiermt.reference)
ops: Any = None
if extension.why_not_native("cpu") is None:
    import hiermt.ops

    ops = Calls(hiermt.ops)
