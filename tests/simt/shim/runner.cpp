// Runs one launcher of csrc/cuda on the host: runner OP DTYPE, arguments on stdin, results on stdout.
#include <cstdlib>
#include <string>

#include "arguments.h"
#include "cuda/dense/conv_stack.h"
#include "cuda/layer.h"
#include "cuda/scan/gated_scan.h"
#include "cuda/support/graph_prepare.h"
#include "decision_runner.h"
#include "faults.h"
#include "training_runner.h"

namespace {

using namespace hiermt;  // NOLINT: a test program
using simt::Arguments;
using simt::ScratchMemory;

CsrGraph read_graph(Arguments& a) {
  CsrGraph graph{};
  graph.num_nodes = a.integer();
  graph.num_entries = a.integer();
  graph.copies = a.integer();
  graph.rowptr = a.in<int32_t>();
  graph.col = a.in<int32_t>();
  graph.colptr = a.in<int32_t>();
  graph.row = a.in<int32_t>();
  graph.csr2csc = a.in<int32_t>();
  return graph;
}

template <class S>
SequenceView<S> read_sequence(Arguments& a) {
  SequenceView<S> x{};
  x.channels = a.integer();
  x.stride_copy = a.integer();
  x.stride_node = a.integer();
  x.stride_time = a.integer();
  x.stride_channel = a.integer();
  x.data = a.in<S>();
  return x;
}

template <class I>
int run_graph(Arguments& a) {
  GraphPrepare<I> p{};
  p.num_nodes = a.integer();
  p.num_edges = a.integer();
  p.rule = static_cast<LoopRule>(a.integer());
  p.source = a.in<I>();
  p.target = p.source + p.num_edges;
  p.rowptr = a.out<int32_t>();
  p.col = a.out<int32_t>();
  p.e_id = a.out<int64_t>();
  p.colptr = a.out<int32_t>();
  p.row = a.out<int32_t>();
  p.csr2csc = a.out<int32_t>();
  const ScratchMemory memory(cuda::graph_prepare_workspace(p));
  return cuda::graph_prepare(p, memory.data(), nullptr);
}

template <class S>
GateWeights<S> read_gates(Arguments& a) {
  GateWeights<S> weights{};
  weights.u_weight = a.in<S>();
  weights.u_bias = a.in<S>();
  weights.r_weight = a.in<S>();
  weights.r_bias = a.in<S>();
  weights.c_weight = a.in<S>();
  weights.c_bias = a.in<S>();
  return weights;
}

// A scan owns the windows its parameters point to.
template <class S>
struct Scan {
  DayWindows windows{};
  GatedScanForward<S> p{};

  explicit Scan(Arguments& a) {
    p.copies = a.integer();
    p.num_nodes = a.integer();
    p.steps = a.integer();
    p.hidden = a.integer();
    p.x = read_sequence<S>(a);
    p.g = a.in<S>();
    read_rest(a);
  }
  // Of the x that a stack reads.
  Scan(Arguments& a, const ConvStackForward<S>& stack) {
    p.copies = stack.graph.copies;
    p.num_nodes = stack.graph.num_nodes;
    p.steps = stack.steps;
    p.hidden = stack.hidden;
    p.x = stack.x;
    read_rest(a);
  }
  Scan(const Scan&) = delete;

 private:
  void read_rest(Arguments& a) {
    p.h0 = a.in<S>();
    p.weights = read_gates<S>(a);
    windows.count = a.integer();
    windows.steps = a.integer();
    windows.starts = a.in<int64_t>();
    p.windows = windows.count >= 0 ? &windows : nullptr;
    p.tf32 = std::getenv("HIERMT_SIMT_TF32") != nullptr;
  }
};

template <class S>
void read_scan_backward(Arguments& a, GatedScanBackward<S, Compute<S>>& p) {
  p.forward.h = const_cast<S*>(a.in<S>());
  p.forward.gates = const_cast<S*>(a.in<S>());
  p.d_h = a.in<S>();
  p.d_h_last = a.in<S>();
}

template <class C>
GateGrads<C> read_gate_grads(Arguments& a) {
  GateGrads<C> grads{};
  grads.u_weight = a.out<C>();
  grads.u_bias = a.out<C>();
  grads.r_weight = a.out<C>();
  grads.r_bias = a.out<C>();
  grads.c_weight = a.out<C>();
  grads.c_bias = a.out<C>();
  return grads;
}

// A stack owns the arrays its parameters point to.
template <class S>
struct Stack {
  std::vector<GatV2Weights<S>> gat;
  std::vector<GcnWeights<S>> gcn;
  ConvStackForward<S> p{};

  explicit Stack(Arguments& a) {
    p.graph = read_graph(a);
    p.x = read_sequence<S>(a);
    p.steps = a.integer();
    p.hidden = a.integer();
    p.conv_layers = a.integer();
    const bool is_gat = a.integer() != 0;
    p.last = static_cast<Activation>(a.integer());
    p.edge_weight = a.in<S>();
    for (int64_t k = 0; k < p.conv_layers; ++k) {
      if (is_gat) {
        GatV2Weights<S> w{};
        w.lin_l_weight = a.in<S>();
        w.lin_l_bias = a.in<S>();
        w.lin_r_weight = a.in<S>();
        w.lin_r_bias = a.in<S>();
        w.att = a.in<S>();
        w.bias = a.in<S>();
        w.lin_edge_weight = a.in<S>();
        gat.push_back(w);
      } else {
        GcnWeights<S> w{};
        w.lin_weight = a.in<S>();
        w.bias = a.in<S>();
        gcn.push_back(w);
      }
    }
    p.gat = is_gat ? gat.data() : nullptr;
    p.gcn = is_gat ? nullptr : gcn.data();
    p.tf32 = std::getenv("HIERMT_SIMT_TF32") != nullptr;
  }
};

template <class S>
struct StackGrads {
  std::vector<GatV2Grads<Compute<S>>> gat;
  std::vector<GcnGrads<Compute<S>>> gcn;

  // Without a gradient of any parameter there are no arrays.
  StackGrads(Arguments& a, const ConvStackForward<S>& p) {
    using C = Compute<S>;
    bool any = false;
    const auto take = [&] {
      C* const out = a.out<C>();
      any = any || out != nullptr;
      return out;
    };
    for (int64_t k = 0; k < p.conv_layers; ++k) {
      if (p.gat != nullptr) {
        GatV2Grads<C> g{};
        g.lin_l_weight = take();
        g.lin_l_bias = take();
        g.lin_r_weight = take();
        g.lin_r_bias = take();
        g.att = take();
        g.bias = take();
        g.lin_edge_weight = take();
        gat.push_back(g);
      } else {
        GcnGrads<C> g{};
        g.lin_weight = take();
        g.bias = take();
        gcn.push_back(g);
      }
    }
    if (any) return;
    gat.clear();
    gcn.clear();
  }
  const GatV2Grads<Compute<S>>* gat_data() const { return gat.empty() ? nullptr : gat.data(); }
  const GcnGrads<Compute<S>>* gcn_data() const { return gcn.empty() ? nullptr : gcn.data(); }
};

template <class S>
int run_stack_backward(Arguments& a) {
  using C = Compute<S>;
  Stack<S> stack(a);
  stack.p.out = const_cast<S*>(a.in<S>());
  ConvStackBackward<S, C> p{};
  p.forward = stack.p;
  p.d_out = a.in<S>();
  p.d_x = a.out<S>();
  const StackGrads<S> grads(a, stack.p);
  p.gat = grads.gat_data();
  p.gcn = grads.gcn_data();
  p.d_edge_weight = a.out<C>();
  const ScratchMemory memory(cuda::conv_stack_backward_workspace(p));
  return cuda::conv_stack_backward(p, memory.data(), nullptr);
}

// A layer: its stack, whose activation tells whether a leaky_relu follows the last convolution, then the
// gates.
template <class S>
struct Layer {
  Stack<S> stack;
  Scan<S> scan;

  explicit Layer(Arguments& a) : stack(a), scan(a, stack.p) {}
};

template <class S>
int run_layer_backward(Arguments& a) {
  using C = Compute<S>;
  Layer<S> layer(a);
  TgcnLayerBackward<S, C> p{};
  p.scan.forward = layer.scan.p;
  read_scan_backward(a, p.scan);
  p.stack.forward = layer.stack.p;
  p.stack.forward.out = const_cast<S*>(a.in<S>());
  p.stack.d_x = p.scan.d_x = a.out<S>();
  p.stack.accumulate_d_x = true;
  const StackGrads<S> grads(a, layer.stack.p);
  p.stack.gat = grads.gat_data();
  p.stack.gcn = grads.gcn_data();
  p.scan.grads = read_gate_grads<C>(a);
  p.scan.d_h0 = a.out<S>();
  p.stack.d_edge_weight = a.out<C>();
  const ScratchMemory memory(cuda::tgcn_layer_backward_workspace(p));
  return cuda::tgcn_layer_backward(p, memory.data(), nullptr);
}

template <class S>
int run(const std::string& op, Arguments& a) {
  if (op == "conv_stack") {
    Stack<S> stack(a);
    stack.p.out = a.out<S>();
    const ScratchMemory memory(cuda::conv_stack_forward_workspace(stack.p));
    return cuda::conv_stack_forward(stack.p, memory.data(), nullptr);
  }
  if (op == "conv_stack_backward") return run_stack_backward<S>(a);
  if (op == "gated_scan") {
    Scan<S> scan(a);
    scan.p.h = a.out<S>();
    scan.p.h_last = a.out<S>();
    scan.p.gates = a.out<S>();
    const ScratchMemory memory(cuda::gated_scan_forward_workspace(scan.p));
    return cuda::gated_scan_forward(scan.p, memory.data(), nullptr);
  }
  if (op == "gated_scan_backward") {
    using C = Compute<S>;
    const Scan<S> scan(a);
    GatedScanBackward<S, C> p{};
    p.forward = scan.p;
    read_scan_backward(a, p);
    p.d_x = a.out<S>();
    p.d_g = a.out<S>();
    p.d_h0 = a.out<S>();
    p.grads = read_gate_grads<C>(a);
    const ScratchMemory memory(cuda::gated_scan_backward_workspace(p));
    return cuda::gated_scan_backward(p, memory.data(), nullptr);
  }
  if (op == "tgcn_layer") {
    Layer<S> layer(a);
    TgcnLayerForward<S> p{layer.stack.p, layer.scan.p};
    p.scan.h = a.out<S>();
    p.scan.h_last = a.out<S>();
    p.scan.gates = a.out<S>();
    p.stack.out = a.out<S>();
    const ScratchMemory memory(cuda::tgcn_layer_forward_workspace(p));
    return cuda::tgcn_layer_forward(p, memory.data(), nullptr);
  }
  if (op == "tgcn_layer_backward") return run_layer_backward<S>(a);
  if (op == "decision") return simt::run_decision<S>(a);
  if (op == "decision_from_logits") return simt::run_decision_from_logits<S>(a);
  if (op == "decision_backward") return simt::run_decision_backward<S>(a);
  if (op == "multitask_loss") return simt::run_multitask_loss<S>(a);
  if (op == "multitask_loss_backward") return simt::run_multitask_loss_backward<S>(a);
  return -1;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 64;
  const std::string op = argv[1], dtype = argv[2];
  Arguments arguments;
  int status = -1;
  if (op == "fault") {
    const int fault = static_cast<int>(arguments.integer()), n = static_cast<int>(arguments.integer());
    status = hiermt::cuda::run_fault(fault, arguments.in<float>(), arguments.out<float>(), n, nullptr);
  } else if (op == "graph_prepare") {
    status = dtype == "int32" ? run_graph<int32_t>(arguments) : run_graph<int64_t>(arguments);
  } else if (dtype == "float32") {
    status = run<float>(op, arguments);
  } else if (dtype == "float64") {
    status = run<double>(op, arguments);
  } else if (dtype == "bfloat16") {
    status = run<hiermt::BFloat16>(op, arguments);
  } else if (dtype == "float16") {
    status = run<hiermt::Half>(op, arguments);
  }
  arguments.reply(status);
  return 0;
}
