// Host entry of hiermt::tgcn_layer and its backward.
#include <torch/csrc/stable/library.h>

#include <string>
#include <tuple>

#include "cuda/layer.h"
#include "host/device_call.h"
#include "host/gate_arguments.h"
#include "host/graph_arguments.h"
#include "host/window_arguments.h"

namespace hiermt {
namespace {

const char* const kGatNames[] = {"lin_l.weight", "lin_l.bias", "lin_r.weight",   "lin_r.bias",
                                 "att",          "bias",       "lin_edge.weight"};
const char* const kGcnNames[] = {"lin.weight", "bias"};

struct Arguments {
  CsrGraph graph;
  int64_t steps, channels, hidden, conv_layers;
  bool gat, edge, between;
  int64_t per_conv;
  ScalarType dtype;
  // The windows, if there are, and what the scan runs over: nodes and steps of x, or those of the windows.
  std::optional<WindowArguments> windows;
  int64_t scan_nodes, scan_steps;
};

Arguments check_arguments(const char* op, const Tensor& x, const std::vector<Tensor>& csr,
                          const std::optional<Tensor>& edge_weight, const std::vector<Tensor>& conv_params,
                          const std::vector<Tensor>& gate_params, int64_t conv_layers, bool gat, bool edge,
                          bool between, const std::optional<Tensor>& starts, int64_t steps) {
  const CsrGraph graph = graph_of(op, csr, x);
  const int64_t per_conv = gat ? (edge ? 7 : 6) : 2, channels = x.size(2);
  if (conv_layers < 1) fail(op, "conv_layers", "expected at least 1, got ", conv_layers);
  // The quotient, as the product of two arguments may wrap around.
  const auto params = static_cast<int64_t>(conv_params.size());
  if (params % per_conv != 0 || params / per_conv != conv_layers) {
    fail(op, "conv_params", "expected ", conv_layers, " x ", per_conv, " tensors, got ", conv_params.size());
  }
  if (gate_params.size() != kGateParams)
    fail(op, "gate_params", "expected 6 tensors, got ", gate_params.size());
  check_shape(op, gat ? kGatNames[0] : kGcnNames[0], conv_params[0], {"H", channels});
  const int64_t hidden = conv_params[0].size(0);
  check_conv_size(op, graph, x, hidden);
  check_scan_size(op, "x", x.size(0), x.size(1), channels, hidden);
  for (int64_t k = 0; k < conv_layers; ++k) {
    const int64_t inputs = k == 0 ? channels : hidden;
    for (int64_t i = 0; i < per_conv; ++i) {
      const char* name = gat ? kGatNames[i] : kGcnNames[i];
      const Tensor& param = conv_params[k * per_conv + i];
      if (i == 0 || (gat && i == 2)) {
        check_parameter(op, name, param, {hidden, inputs}, "x", x);
      } else {
        check_flat_parameter(op, name, param, hidden, "x", x);
      }
    }
  }
  for (int64_t i = 0; i < kGateParams; ++i) {
    check_flat_parameter(op, kGateNames[i], gate_params[i], i % 2 ? hidden : hidden * (channels + 2 * hidden),
                         "x", x);
  }
  if (edge_weight) check_parameter(op, "edge_weight", *edge_weight, {graph.num_entries}, "x", x);
  if (!gat && !edge_weight) fail(op, "edge_weight", "a GCN needs the norm of each entry, got None");
  if (gat && !edge && edge_weight) fail(op, "edge_weight", "needs a GATv2 with an edge term");
  check_cuda_limits(op, x, hidden);
  Arguments a{graph,   x.size(1), channels,        hidden,       conv_layers, gat,      edge,
              between, per_conv,  x.scalar_type(), std::nullopt, x.size(0),   x.size(1)};
  if (!starts) return a;
  check_shape(op, "x", x, {graph.num_nodes, "D", channels});
  a.windows = check_windows(op, *starts, steps, a.steps, "x", x);
  check_count(op, "starts", {a.windows->count, graph.num_nodes});
  check_scan_size(op, "starts", a.windows->count * graph.num_nodes, steps, channels, hidden);
  a.scan_nodes = a.windows->count * graph.num_nodes;
  a.scan_steps = steps;
  check_cuda_limits(op, x, a.scan_nodes, a.scan_steps, hidden);
  return a;
}

template <class S>
std::vector<GatV2Weights<S>> gat_weights(const Arguments& a, const std::vector<Tensor>& params) {
  std::vector<GatV2Weights<S>> weights;
  for (int64_t k = 0; k < (a.gat ? a.conv_layers : 0); ++k) {
    const Tensor* p = &params[k * a.per_conv];
    weights.push_back({data<S>(p[0]), data<S>(p[1]), data<S>(p[2]), data<S>(p[3]), data<S>(p[4]),
                       a.edge ? data<S>(p[6]) : nullptr, data<S>(p[5])});
  }
  return weights;
}

template <class S>
std::vector<GcnWeights<S>> gcn_weights(const Arguments& a, const std::vector<Tensor>& params) {
  std::vector<GcnWeights<S>> weights;
  for (int64_t k = 0; k < (a.gat ? 0 : a.conv_layers); ++k) {
    weights.push_back({data<S>(params[k * 2]), data<S>(params[k * 2 + 1])});
  }
  return weights;
}

// The pointers of a call, and the arrays behind some of them.
template <class S>
struct Layer {
  std::vector<GatV2Weights<S>> gat;
  std::vector<GcnWeights<S>> gcn;
  TgcnLayerForward<S> params;

  Layer(const Arguments& a, const Tensor& x, const std::optional<Tensor>& edge_weight,
        const std::vector<Tensor>& conv_params, const std::vector<Tensor>& gates, S* g, bool tf32)
      : gat(gat_weights<S>(a, conv_params)),
        gcn(gcn_weights<S>(a, conv_params)),
        params{a.graph,
               view_of<S>(x, a.graph.num_nodes),
               a.steps,
               a.hidden,
               data<S>(edge_weight),
               a.conv_layers,
               a.gat ? gat.data() : nullptr,
               a.gat ? nullptr : gcn.data(),
               a.between,
               gate_weights<S>(gates),
               nullptr,
               nullptr,
               nullptr,
               g,
               tf32,
               a.windows ? a.windows->days() : DayWindows{}} {}
};

std::tuple<Tensor, Tensor, Tensor, Tensor> tgcn_layer(
    Tensor x, std::vector<Tensor> csr, std::optional<Tensor> edge_weight, std::vector<Tensor> conv_params,
    std::vector<Tensor> gate_params, int64_t conv_layers, bool gat, bool edge, bool between, bool sequence,
    bool save, bool tf32, std::optional<Tensor> starts, int64_t steps) {
  constexpr const char* op = "tgcn_layer";
  const Arguments a = check_arguments(op, x, csr, edge_weight, conv_params, gate_params, conv_layers, gat,
                                      edge, between, starts, steps);
  const ScanOutputs outputs(a.scan_nodes, a.scan_steps, a.hidden, sequence, save, save && x.is_cpu(), x);
  const Tensor g = save ? empty({x.size(0), a.steps, a.hidden}, a.dtype, x) : empty({0}, a.dtype, x);
  dispatch_floating(op, "x", a.dtype, [&](auto type) {
    using S = typename decltype(type)::type;
    Layer<S> layer(a, x, edge_weight, conv_params, gate_params, output<S>(g, save), tf32);
    TgcnLayerForward<S>& p = layer.params;
    outputs.fill(p);
    run_native<S>(
        op, "x", x, [&](const auto& kernels) { kernels.tgcn_layer_forward(p); },
        [&](void* stream) {
          const Tensor workspace = workspace_of(cuda::tgcn_layer_forward_workspace(p), x);
          return cuda::tgcn_layer_forward(p, workspace.mutable_data_ptr(), stream);
        });
  });
  return {outputs.out(), outputs.other(), outputs.gates, g};
}

std::vector<Tensor> tgcn_layer_backward(Tensor d_out, Tensor x, std::vector<Tensor> csr,
                                        std::optional<Tensor> edge_weight, std::vector<Tensor> conv_params,
                                        std::vector<Tensor> gate_params, int64_t conv_layers, bool gat,
                                        bool edge, bool between, bool sequence, Tensor h, Tensor gates,
                                        Tensor g, bool need_x, bool need_conv, bool need_gates,
                                        bool need_edge_weight, bool tf32, std::optional<Tensor> starts,
                                        int64_t steps) {
  constexpr const char* op = "tgcn_layer_backward";
  const Arguments a = check_arguments(op, x, csr, edge_weight, conv_params, gate_params, conv_layers, gat,
                                      edge, between, starts, steps);
  const int64_t nodes = x.size(0);
  const ScanCotangent cotangent{sequence, d_out, h, gates};
  cotangent.check(op, a.scan_nodes, a.scan_steps, a.hidden, x.is_cpu(), x);
  check_parameter(op, "g", g, {nodes, a.steps, a.hidden}, "x", x);
  const bool need_weight = need_edge_weight && edge_weight.has_value();

  // d_x, the parameters of the convolutions, those of the gates, edge_weight
  std::vector<Tensor> grads;
  grads.push_back(need_x ? empty({nodes, a.steps, a.channels}, a.dtype, x) : empty({0}, a.dtype, x));
  for (const Tensor& param : conv_params) grads.push_back(gradient_of(param, need_conv));
  for (const Tensor& param : gate_params) grads.push_back(gradient_of(param, need_gates));
  grads.push_back(empty({need_weight ? a.graph.num_entries : 0}, compute_dtype(a.dtype), x));

  dispatch_floating(op, "x", a.dtype, [&](auto type) {
    using S = typename decltype(type)::type;
    using C = Compute<S>;
    // The kernel only reads what was saved.
    const Layer<S> layer(a, x, edge_weight, conv_params, gate_params, const_cast<S*>(data<S>(g)), tf32);
    std::vector<GatV2Grads<C>> gat_grads;
    std::vector<GcnGrads<C>> gcn_grads;
    for (int64_t k = 0; k < (need_conv ? conv_layers : 0); ++k) {
      const auto grad = [&](int64_t i) { return mutable_data<C>(grads[1 + k * a.per_conv + i]); };
      if (gat) {
        gat_grads.push_back({grad(0), grad(1), grad(2), grad(3), grad(4), edge ? grad(6) : nullptr, grad(5)});
      } else {
        gcn_grads.push_back({grad(0), grad(1)});
      }
    }
    TgcnLayerBackward<S, C> p{};
    p.forward = layer.params;
    cotangent.fill(p, x.is_cpu());
    p.d_x = output<S>(grads[0], need_x);
    p.gat = gat_grads.empty() ? nullptr : gat_grads.data();
    p.gcn = gcn_grads.empty() ? nullptr : gcn_grads.data();
    p.gates = gate_grads<C>(grads, 1 + conv_params.size(), need_gates);
    p.d_edge_weight = output<C>(grads.back(), need_weight);
    run_native<S>(
        op, "x", x, [&](const auto& kernels) { kernels.tgcn_layer_backward(p); },
        [&](void* stream) {
          const Tensor workspace = workspace_of(cuda::tgcn_layer_backward_workspace(p), x);
          return cuda::tgcn_layer_backward(p, workspace.mutable_data_ptr(), stream);
        });
  });
  return grads;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hiermt, CPU, m) {
  m.impl("tgcn_layer", TORCH_BOX(&tgcn_layer));
  m.impl("tgcn_layer_backward", TORCH_BOX(&tgcn_layer_backward));
}

#ifdef HIERMT_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(hiermt, CUDA, m) {
  m.impl("tgcn_layer", TORCH_BOX(&tgcn_layer));
  m.impl("tgcn_layer_backward", TORCH_BOX(&tgcn_layer_backward));
}
#endif

}  // namespace hiermt
