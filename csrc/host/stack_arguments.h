// The arguments that every operator with a convolution stack takes: the graph, x, the weights of the entries
// and the parameters of each convolution. How many parameters one has tells what it is: 2 a GCN, 6 a GATv2, 7
// a GATv2 with an edge term.
#pragma once

#include <vector>

#include "host/graph_arguments.h"

namespace hiermt {

constexpr const char* kGatNames[] = {"lin_l.weight", "lin_l.bias", "lin_r.weight",   "lin_r.bias",
                                     "att",          "bias",       "lin_edge.weight"};
constexpr const char* kGcnNames[] = {"lin.weight", "bias"};

struct StackArguments {
  CsrGraph graph;
  int64_t nodes, steps, channels, hidden, conv_layers, per_conv;
  ScalarType dtype;

  bool gat() const { return per_conv != 2; }
  bool edge() const { return per_conv == 7; }
};

inline StackArguments check_stack(const char* op, const Tensor& x, const std::vector<Tensor>& csr,
                                  const std::optional<Tensor>& edge_weight,
                                  const std::vector<Tensor>& conv_params,
                                  const std::optional<Tensor>& present, int64_t conv_layers) {
  const CsrGraph graph = graph_of(op, csr, x);
  if (present) check_present(op, *present, x);
  if (conv_layers < 1) fail(op, "conv_layers", "expected at least 1, got ", conv_layers);
  const auto count = static_cast<int64_t>(conv_params.size());
  const int64_t per_conv = count % conv_layers == 0 ? count / conv_layers : 0, channels = x.size(2);
  if (per_conv != 2 && per_conv != 6 && per_conv != 7) {
    fail(op, "conv_params", "expected ", conv_layers,
         " times 2 (GCN), 6 (GATv2) or 7 (GATv2 with an edge term) tensors, got ", count);
  }
  const bool gat = per_conv != 2;
  const char* const* names = gat ? kGatNames : kGcnNames;
  check_shape(op, names[0], conv_params[0], {"H", channels});
  const int64_t hidden = conv_params[0].size(0);
  check_conv_size(op, graph, x, hidden);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t which = i % per_conv, inputs = i < per_conv ? channels : hidden;
    if (which == 0 || (gat && which == 2)) {
      check_parameter(op, names[which], conv_params[i], {hidden, inputs}, "x", x);
    } else if (!gat || (which != 4 && which != 6)) {
      check_parameter(op, names[which], conv_params[i], {hidden}, "x", x);
    } else {
      check_flat_parameter(op, names[which], conv_params[i], hidden, "x", x);
    }
  }
  if (edge_weight) check_parameter(op, "edge_weight", *edge_weight, {graph.num_entries}, "x", x);
  if (!gat && !edge_weight) fail(op, "edge_weight", "a GCN needs the norm of each entry, got None");
  if (per_conv == 6 && edge_weight) fail(op, "edge_weight", "needs a GATv2 with an edge term");
  check_cuda_limits(op, x, hidden);
  return {graph, x.size(0), x.size(1), channels, hidden, conv_layers, per_conv, x.scalar_type()};
}

// The parameters of a stack, and the arrays behind some of them.
template <class S>
struct Stack {
  std::vector<GatV2Weights<S>> gat;
  std::vector<GcnWeights<S>> gcn;
  ConvStackForward<S> params;

  Stack(const StackArguments& a, const Tensor& x, const std::optional<Tensor>& edge_weight,
        const std::vector<Tensor>& conv_params, const std::optional<Tensor>& present, Activation last, S* out,
        bool tf32) {
    for (int64_t k = 0; k < a.conv_layers; ++k) {
      const Tensor* p = &conv_params[k * a.per_conv];
      if (a.gat()) {
        gat.push_back({data<S>(p[0]), data<S>(p[1]), data<S>(p[2]), data<S>(p[3]), data<S>(p[4]),
                       a.edge() ? data<S>(p[6]) : nullptr, data<S>(p[5])});
      } else {
        gcn.push_back({data<S>(p[0]), data<S>(p[1])});
      }
    }
    params = {a.graph,
              view_of<S>(x, a.graph.num_nodes),
              a.steps,
              a.hidden,
              data<S>(edge_weight),
              data<bool>(present),
              a.conv_layers,
              a.gat() ? gat.data() : nullptr,
              a.gat() ? nullptr : gcn.data(),
              last,
              out,
              tf32};
  }
};

// Where the gradients of the convolutions' parameters go, of which grads[first] is the first; nullptr where
// they are not wanted.
template <class C>
struct StackGrads {
  std::vector<GatV2Grads<C>> gat_arrays;
  std::vector<GcnGrads<C>> gcn_arrays;
  const GatV2Grads<C>* gat;
  const GcnGrads<C>* gcn;

  StackGrads(const StackArguments& a, const std::vector<Tensor>& grads, size_t first, bool wanted) {
    for (int64_t k = 0; k < (wanted ? a.conv_layers : 0); ++k) {
      const auto at = [&](int64_t i) { return mutable_data<C>(grads[first + k * a.per_conv + i]); };
      if (a.gat()) {
        gat_arrays.push_back({at(0), at(1), at(2), at(3), at(4), a.edge() ? at(6) : nullptr, at(5)});
      } else {
        gcn_arrays.push_back({at(0), at(1)});
      }
    }
    gat = gat_arrays.empty() ? nullptr : gat_arrays.data();
    gcn = gcn_arrays.empty() ? nullptr : gcn_arrays.data();
  }
};

}  // namespace hiermt
