"""The faults that ``make planted`` plants, by class of docs/faults.md; :mod:`support.planted` runs them."""

from __future__ import annotations

from typing import NamedTuple


class Fault(NamedTuple):
    """A text of a source, what takes its place, and the test under ``tests/`` that must fail then."""

    file: str
    text: str
    replacement: str
    test: str
    gpu: bool = False  # found on a GPU alone

    @property
    def compiled(self) -> bool:
        return not self.file.endswith(".py")

    def planted(self, text: str) -> str:
        assert text.count(self.text) == 1, f"{self.file}: {self.text!r} occurs {text.count(self.text)} times"
        return text.replace(self.text, self.replacement)


FAULTS: dict[str, list[Fault]] = {
    "edge-outside": [
        Fault(
            "hiermt/graph/checks.py",
            "if low < 0 or high >= num_nodes:",
            "if low < 0 or high > num_nodes:",
            "model/test_graph.py::test_index_out_of_range",
        )
    ],
    "edge-form": [
        Fault(
            "hiermt/graph/checks.py",
            "if edge_index.dim() != 2 or edge_index.size(0) != 2:",
            "if edge_index.dim() != 2:",
            "model/test_graph.py::test_wrong_edges_are_refused",
        )
    ],
    "stale-graph": [
        Fault(
            "hiermt/graph/graph.py",
            "if not compiling and self._versions != (versions := self._writes.counts()):",
            "if not compiling and not (versions := self._writes.counts()):",
            "model/test_graph_writes.py::test_an_index_out_of_range_is_found_after_a_write",
        )
    ],
    "empty": [
        Fault(
            "hiermt/functional/nothing.py",
            "return not recorded() and (not x.size(0) or not x.size(1))",
            "return False",
            "ops/test_nothing.py::test_weights_of_edges_that_nothing_reads",
        ),
        Fault(
            "csrc/cpu/conv/conv_gradients.h",
            "sum == C(0) ? sum : p.att[c] * sum",
            "p.att[c] * sum",
            "ops/test_nothing.py::test_no_operator_makes_a_gradient_of_nothing",
        ),
    ],
    "loops": [
        Fault(
            "hiermt/graph/norm.py",
            "mean = _row_sums(rowptr, weight) / count.clamp(min=1)",
            "mean = _row_sums(rowptr, weight)",
            "model/test_graph.py::test_entries_equal_pyg",
        )
    ],
    "edge-weight": [
        Fault(
            "hiermt/graph/norm.py",
            "scale = scale.masked_fill(scale == torch.inf, 0.0)",
            "scale = scale.nan_to_num(0.0, 0.0)",
            "model/test_model.py::test_bad_weights_spread_as_in_pyg",
        )
    ],
    "special-numbers": [
        Fault(
            "csrc/cpu/conv/gatv2_block.h",
            "if (__builtin_expect(probe != probe, 0))",
            "if (probe < C(0))",
            "ops/test_edge_numbers.py::test_a_source_at_minus_infinity_gets_no_attention",
        )
    ],
    "wrong-tensor": [
        Fault(
            "hiermt/functional/arguments.py",
            "        if tensor.dtype != dtype:",
            "        if tensor.dtype != dtype and name == first:",
            "ops/test_functional.py::test_wrong_dtypes_are_one_sentence",
        )
    ],
    "strides": [
        Fault(
            "hiermt/ops/_tgcn_layer.py",
            "*(d_out.contiguous(), x, csr,",
            "*(d_out, x, csr,",
            "ops/test_functional.py::test_stride_zero_and_transposed_gradients",
        )
    ],
    "large-index": [
        Fault(
            "hiermt/graph/graph.py",
            "edge_index.size(1) > _INT32_LIMIT:",
            "edge_index.size(1) > 2 * _INT32_LIMIT:",
            "model/test_graph.py::test_too_large_for_32_bit_offsets_is_refused",
        )
    ],
    "streams": [
        Fault(
            "hiermt/training/capture.py",
            "        self.stream.wait_stream(torch.cuda.current_stream())\n",
            "",
            "training/test_capture.py::test_bitwise_equal_to_plain_steps",
            gpu=True,
        )
    ],
    "dtypes": [
        Fault(
            "hiermt/ops/operator.py",
            "return value.to(dtype) if narrow else value",
            "return value",
            "ops/test_contract_rules.py::test_autocast",
        )
    ],
    "determinism": [
        Fault(
            "hiermt/ops/_conv_stack.py",
            "        d_out.contiguous(),",
            "        d_out.contiguous() * (1 + 1e-6 * torch.get_num_threads()),",
            "ops/test_contract_bits.py::test_the_same_bits_on_any_number_of_threads",
        )
    ],
    "compilers": [
        Fault(
            "hiermt/graph/graph.py",
            "traced = recorded() or without_values(edge_index)",
            "traced = without_values(edge_index)",
            "ops/test_functional.py::test_compiles_without_a_break_for_any_size",
        )
    ],
    "double-backward": [
        Fault(
            "hiermt/ops/operator.py",
            'raise NotImplementedError(\n                f"hiermt.{name} has no second derivative',
            'raise RuntimeError(\n                f"hiermt.{name} has no second derivative',
            "ops/test_derivatives.py::test_second_derivatives_name_the_reference",
        )
    ],
    "workers": [
        Fault(
            "hiermt/graph/graph.py",
            "        vars(self).update(state)\n        self._reset()\n",
            "        vars(self).update(state)\n",
            "model/test_graph_writes.py::test_workers_of_a_data_loader",
        )
    ],
    "no-extension": [
        Fault(
            "hiermt/native/extension.py",
            "except Exception as error:  # the import of an arbitrary binary may raise any exception",
            "except ZeroDivisionError as error:",
            "package/test_extension.py::test_corrupt_binary",
        )
    ],
    "weight-file": [
        Fault(
            "hiermt/io/tensor_files.py",
            "weights_only=True",
            "weights_only=False",
            "model/test_interop.py::test_pickled_code_is_not_executed",
        )
    ],
    "labels": [
        Fault(
            "hiermt/functional/loss.py",
            "if int(low) >= 0 and int(high) <= 1:",
            "if int(low) >= 0 and int(high) <= 2:",
            "model/test_loss.py::test_wrong_input_is_refused",
        )
    ],
    "price-cells": [
        Fault(
            "hiermt/data/price_rows.py",
            "if (row := first(values <= 0)) is not None:",
            "if (row := first(values < 0)) is not None:",
            "data/test_data_prices.py::TestRefusals::test_message_names_place_and_cause",
        )
    ],
    "price-columns": [
        Fault(
            "hiermt/data/stock_columns.py",
            "    if fields:\n",
            "    if len(fields) > 1:\n",
            "data/test_data_names.py::TestStocks::test_fields_are_not_stocks",
        )
    ],
    "interrupted-write": [
        Fault(
            "hiermt/io/files.py",
            "yield [temporary.path for temporary in temporaries]",
            "yield [temporary.target for temporary in temporaries]",
            "model/test_files.py::test_a_failing_disk_leaves_the_old_file",
        )
    ],
    "killed": [
        Fault(
            "hiermt/io/checkpoint.py",
            "        if saved and not _same(config.get(key), saved.get(key))",
            "        if not saved",
            "faults/test_killed.py::test_killed_within_a_save",
        )
    ],
    "writers": [
        Fault(
            "hiermt/training/resume.py",
            "if processes.rank == 0:",
            "if processes.rank >= 0:",
            "training/test_resume_processes.py::test_the_first_process_writes",
        )
    ],
    "unwritten": [
        Fault(
            "csrc/cpu/conv/conv_stack_backward.cpp",
            "for (int64_t e = 0; e < entries; ++e) gradient[e] = C(0);",
            "",
            "ops/test_contract.py::test_equals_twin",
        )
    ],
    "equal-parts": [
        Fault(
            "hiermt/graph/csr.py",
            "if not torch.equal(col, col[:1].expand_as(col)) or bool",
            "if bool",
            "model/test_equal_parts.py::test_every_way_in_forward",
        )
    ],
    "foreign-module": [
        Fault(
            "hiermt/io/probe.py",
            "if not difference <= _TOLERANCE[self.dtype]:",
            "if difference > 1e9:",
            "model/test_from_reference.py::test_refuses_what_computes_another_thing",
        )
    ],
    "replaced-part": [
        Fault(
            "hiermt/nn/parameters.py",
            '        if getattr(kind, "forward", None) is not forward:',
            '        if not hasattr(kind, "forward"):',
            "model/test_replaced_parts.py::test_a_part_of_the_users",
        )
    ],
    "resume": [
        Fault(
            "hiermt/training/resume.py",
            '    changes.append(optimizer_change(optimizer, content["optimizer"]))\n',
            "",
            "training/test_resume.py::test_bitwise_equal_after_a_resume",
        )
    ],
    "damaged-state": [
        Fault(
            "hiermt/training/resume.py",
            'if not content["intact"]:',
            'if content["intact"] is None:',
            "training/test_resume_damage.py::test_bytes_that_flip",
        )
    ],
    "scalars": [
        Fault(
            "hiermt/_arguments.py",
            "if isinstance(value, bool) or not isinstance(value, Real):",
            "if not isinstance(value, Real):",
            "model/test_loss_arguments.py::test_wrong_numbers_are_refused",
        )
    ],
    "forged-call": [
        Fault(
            "csrc/host/conv_stack.cpp",
            '  check_parameter(op, "d_out", d_out, {a.nodes, a.steps, a.hidden}, "x", x);\n',
            "",
            "ops/test_forged_calls.py::test_a_backward_refuses_a_tensor_that_is_a_row_short",
        )
    ],
    "outputs": [
        Fault(
            "hiermt/io/files.py",
            "    if not stat.S_ISREG(mode):",
            "    if stat.S_ISSOCK(mode):",
            "model/test_files.py::test_anything_else_is_refused_before_it_is_touched",
        )
    ],
    "memory": [
        Fault(
            "hiermt/inference/rolling.py",
            "chunk = max(1, _CHUNK_NODES // max(stocks, 1)) if chunk is None else chunk",
            "chunk = 10**9",
            "inference/test_rolling.py::test_memory_is_bounded_by_the_chunk",
        )
    ],
    "divergence": [
        Fault(
            "hiermt/training/divergence.py",
            'reason = None if math.isfinite(largest) else "a parameter of the model is no longer finite"',
            "reason = None",
            "training/test_training_rules.py::test_weights_that_turn_nan_in_the_last_step_are_not_stored",
        )
    ],
    "rounding": [
        Fault(
            "csrc/cpu/conv/gatv2_block_backward.h",
            "pivot = select(alpha > largest,",
            "pivot = select(alpha < zero<C>(),",
            "ops/test_error_ratios.py::test_gradients_of_a_saturated_softmax",
        )
    ],
    "load": [
        Fault(
            "hiermt/functional/arguments.py",
            "    dtype = tensors[0].dtype\n",
            "    dtype = tensors[0].dtype\n    [None] * (tensors[0].size(0) ** 2 // 4)\n",
            "faults/test_load.py::test_the_time_per_node_does_not_grow",
        )
    ],
    "absent": [
        Fault(
            "hiermt/functional/convolution.py",
            "normalized = present is None and not is_nothing(sequence)",
            "normalized = not is_nothing(sequence)",
            "ops/test_present.py::test_convolutions_alone_equal_pyg_day_by_day",
        ),
        Fault(
            "hiermt/reference/scan.py",
            "before = _there(h, mask)",
            "before = h",
            "ops/test_present_numbers.py::test_a_layer",
        ),
        Fault(
            "csrc/cpu/scan/gated_scan_backward_tile.h",
            "if (arguments_.present != nullptr) hold_cotangents(t);",
            "",
            "ops/test_present_numbers.py::test_a_layer",
        ),
    ],
    "messages": [
        Fault(
            "hiermt/presence.py",
            'raise ValueError(f"{name}: expected shape {list(shape)}, got {list(present.shape)}")',
            'raise ValueError("wrong shape")',
            "package/test_messages.py",
        )
    ],
}
