// The CPU kernels under ThreadSanitizer, without torch, whose pool and allocator would drown what it finds.
//
// Threads prepare one graph, then run forward and backward of a layer, a decision and a loss on inputs that they share
// and outputs of their own. Meanwhile the number of threads of the pool changes and scratch memory is released. Each
// result has to be bitwise equal to that of a serial call before.
//
//   driver THREADS ROUNDS [race]     race: two threads write one output, for the test of the test
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "cpu/support/dispatch.h"
#include "cpu/support/graph_prepare.h"
#include "cpu/support/kernels.h"
#include "cpu/support/parallel.h"
#include "cpu/support/scratch.h"

namespace {

using namespace hiermt;
using Floats = std::vector<float>;

constexpr int64_t kNodes = 30, kEdges = 150, kCopies = 2, kSteps = 5, kChannels = 3, kHidden = 8;
constexpr int64_t kEntries = kEdges + kNodes, kRows = kCopies * kNodes;

std::atomic<int> g_pool{2};

// A pool of as many threads as `g_pool` says at the moment.
void run_on_threads(int64_t tasks, cpu::TaskRange run, void* context) {
  const int64_t parts = std::min<int64_t>(tasks, g_pool.load());
  std::vector<std::thread> threads;
  for (int64_t i = 1; i < parts; ++i)
    threads.emplace_back([=] { run(tasks * i / parts, tasks * (i + 1) / parts, context); });
  run(0, tasks / parts, context);
  for (std::thread& thread : threads) thread.join();
}

Floats random_floats(int64_t count, unsigned seed) {
  Floats values(count);
  for (float& value : values) {
    seed = seed * 1664525u + 1013904223u;
    value = static_cast<float>(seed >> 8) / (1 << 23) - 1;
  }
  return values;
}

struct Edges {
  std::vector<int64_t> source, target;
  Edges() {
    for (int64_t e = 0; e < kEdges; ++e) {
      source.push_back((7 * e + e / 3) % kNodes);
      target.push_back((11 * e + 2) % kNodes);
    }
  }
};

struct Prepared {
  std::vector<int32_t> rowptr, col, colptr, row, csr2csc, blocks;
  std::vector<int64_t> e_id;
  int64_t num_blocks;

  explicit Prepared(const Edges& edges)
      : rowptr(kNodes + 1),
        col(kEntries),
        colptr(kNodes + 1),
        row(kEntries),
        csr2csc(kEntries),
        blocks(kNodes + 1),
        e_id(kEntries) {
    const GraphPrepare<int64_t> p{kNodes,           kEdges,        edges.source.data(), edges.target.data(),
                                  LoopRule::kGatV2, rowptr.data(), col.data(),          e_id.data(),
                                  colptr.data(),    row.data(),    csr2csc.data(),      blocks.data()};
    if (cpu::first_edge_outside(p) != -1) std::abort();
    num_blocks = cpu::graph_prepare(p);
  }
  CsrGraph view() const {
    return {kNodes,        kEntries,   kCopies,        num_blocks,    rowptr.data(), col.data(),
            colptr.data(), row.data(), csr2csc.data(), blocks.data(), nullptr};
  }
};

// What all threads read.
struct Problem {
  Edges edges;
  Prepared graph{edges};
  Floats x = random_floats(kRows * kSteps * kChannels, 1), edge_weight = random_floats(kEntries, 2);
  Floats conv[2][7], gates[6], heads[6], d_h = random_floats(kRows * kSteps * kHidden, 3);
  std::vector<int64_t> labels = std::vector<int64_t>(kRows);

  Problem() {
    for (int k = 0; k < 2; ++k) {
      const int64_t in = k == 0 ? kChannels : kHidden;
      const int64_t sizes[] = {kHidden * in, kHidden, kHidden * in, kHidden, kHidden, kHidden, kHidden};
      for (int i = 0; i < 7; ++i) conv[k][i] = random_floats(sizes[i], 10 * k + i + 20);
    }
    for (int i = 0; i < 6; ++i)
      gates[i] = random_floats(i % 2 ? kHidden : kHidden * (kChannels + 2 * kHidden), 50 + i);
    const int64_t sizes[] = {kHidden * kHidden, kHidden, 2 * kHidden, 2, 2 * kHidden, 2};
    for (int i = 0; i < 6; ++i) heads[i] = random_floats(sizes[i], 60 + i);
    for (int64_t i = 0; i < kRows; ++i) labels[i] = i % 2;
  }
};

// One training step; all results one after the other.
Floats step(const Problem& q) {
  const cpu::ScratchCall call;
  const cpu::KernelTable<float>& kernels = cpu::kernels_of<float>();
  const Prepared own(q.edges);
  Floats g(kRows * kSteps * kHidden), h(g.size()), u(3 * g.size()), d_x(q.x.size());
  GatV2Weights<float> conv[2];
  Floats d_conv[2][7], d_gates[6], d_heads[6];
  GatV2Grads<float> conv_grads[2];
  for (int k = 0; k < 2; ++k) {
    const Floats* w = q.conv[k];
    for (int i = 0; i < 7; ++i) d_conv[k][i].resize(w[i].size());
    Floats* d = d_conv[k];
    conv[k] = {w[0].data(), w[1].data(), w[2].data(), w[3].data(), w[4].data(), w[5].data(), w[6].data()};
    conv_grads[k] = {d[0].data(), d[1].data(), d[2].data(), d[3].data(),
                     d[4].data(), d[5].data(), d[6].data()};
  }
  for (int i = 0; i < 6; ++i) d_gates[i].resize(q.gates[i].size()), d_heads[i].resize(q.heads[i].size());

  TgcnLayerForward<float> forward{};
  const SequenceView<float> x{q.x.data(),         kChannels, kNodes * kSteps * kChannels,
                              kSteps * kChannels, kChannels, 1};
  ConvStackForward<float>& stack = forward.stack;
  stack.graph = own.view(), stack.x = x, stack.steps = kSteps, stack.hidden = kHidden;
  stack.edge_weight = q.edge_weight.data(), stack.conv_layers = 2, stack.gat = conv;
  stack.last = Activation::kSigmoid, stack.out = g.data();
  GatedScanForward<float>& scan = forward.scan;
  scan.copies = kCopies, scan.num_nodes = kNodes, scan.steps = kSteps,
  scan.hidden = scan.g_channels = kHidden, scan.x = x;
  scan.h = h.data(), scan.gates = u.data();
  const Floats* w = q.gates;
  scan.weights = {w[0].data(), w[1].data(), w[2].data(), w[3].data(), w[4].data(), w[5].data()};
  kernels.tgcn_layer_forward(forward);

  TgcnLayerBackward<float, float> backward{};
  Floats d_edge(kEntries);
  backward.stack.forward = stack, backward.scan.forward = scan;
  backward.stack.d_x = backward.scan.d_x = d_x.data(), backward.stack.accumulate_d_x = true;
  backward.stack.gat = conv_grads, backward.stack.d_edge_weight = d_edge.data();
  backward.scan.d_h = q.d_h.data();
  Floats* d = d_gates;
  backward.scan.grads = {d[0].data(), d[1].data(), d[2].data(), d[3].data(), d[4].data(), d[5].data()};
  kernels.tgcn_layer_backward(backward);

  Floats signal(2 * kRows), direction(2 * kRows), losses(3), d_signal(2 * kRows), d_direction(2 * kRows);
  DecisionForward<float> decide{};
  decide.rows = kRows, decide.hidden = decide.features = kHidden;
  decide.h = h.data(), decide.stride_row = kSteps * kHidden;
  const Floats* v = q.heads;
  decide.weights = {v[0].data(), v[1].data(), v[2].data(), v[3].data(), v[4].data(), v[5].data()};
  decide.threshold = 0.5;
  decide.signal_logits = signal.data(), decide.direction_logits = direction.data();
  kernels.decision_forward(decide);

  double norms[2];
  MultitaskLossForward<float> loss{};
  loss.rows = kRows, loss.signal_logits = signal.data(), loss.direction_logits = direction.data();
  loss.signal_targets = loss.direction_targets = q.labels.data();
  loss.lambda_direction = 1;
  loss.total = &losses[0], loss.signal = &losses[1], loss.direction = &losses[2], loss.norms = norms;
  kernels.multitask_loss_forward(loss);
  const float one = 1;
  MultitaskLossBackward<float> loss_backward{
      loss, &one, nullptr, nullptr, d_signal.data(), d_direction.data()};
  kernels.multitask_loss_backward(loss_backward);

  Floats d_rows(kRows * kHidden);
  DecisionBackward<float, float> undecide{kRows,
                                          kHidden,
                                          kHidden,
                                          h.data(),
                                          kSteps * kHidden,
                                          decide.weights,
                                          d_signal.data(),
                                          d_direction.data(),
                                          d_rows.data(),
                                          true,
                                          {}};
  Floats* e = d_heads;
  undecide.grads = {e[0].data(), e[1].data(), e[2].data(), e[3].data(), e[4].data(), e[5].data()};
  kernels.decision_backward(undecide);

  Floats all;
  std::vector<const Floats*> parts{&h, &d_x, &d_edge, &signal, &direction, &losses, &d_rows};
  for (const auto& one_conv : d_conv)
    for (const Floats& part : one_conv) parts.push_back(&part);
  for (int i = 0; i < 6; ++i) parts.push_back(&d_gates[i]), parts.push_back(&d_heads[i]);
  for (const Floats* part : parts) all.insert(all.end(), part->begin(), part->end());
  return all;
}

bool same(const Floats& one, const Floats& other) {
  return one.size() == other.size() && std::memcmp(one.data(), other.data(), one.size() * sizeof(float)) == 0;
}

}  // namespace

int main(int count, char** words) {
  const int threads = count > 1 ? std::atoi(words[1]) : 4, rounds = count > 2 ? std::atoi(words[2]) : 10;
  const Problem problem;
  const Floats expected = step(problem);
  for (const float value : expected) {
    if (!(value - value == 0)) return std::puts("a result is not finite"), 2;
  }
  cpu::set_parallel_runner(&run_on_threads);
  std::atomic<int> running{threads}, wrong{0};
  std::vector<std::thread> work;
  volatile int raced = 0;
  for (int i = 0; i < threads; ++i) {
    work.emplace_back([&] {
      for (int round = 0; round < rounds; ++round) {
        for (int k = 0; count > 3 && k < 10000; ++k) raced = raced + 1;
        wrong += !same(step(problem), expected);
      }
      --running;
    });
  }
  for (unsigned i = 0; running > 0; ++i) {
    g_pool = 1 + static_cast<int>(i % 4);
    cpu::release_scratch();
    std::this_thread::yield();
  }
  for (std::thread& thread : work) thread.join();
  std::printf("%d threads, %d rounds, %zu numbers: %d results differ\n", threads, rounds, expected.size(),
              wrong.load());
  return wrong != 0;
}
