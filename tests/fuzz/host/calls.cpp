#include "calls.h"

#include <cstdlib>
#include <cstring>

#include "types.h"

// The reader of the stand-in for the stable ABI takes the arguments from here.
namespace {
const fuzz::Value* next_value = nullptr;
}

namespace simt {

template <>
int64_t Reader::take<int64_t>() {
  return std::get<int64_t>(*next_value++);
}
template <>
bool Reader::take<bool>() {
  return take<int64_t>() != 0;
}
template <>
double Reader::take<double>() {
  return std::get<double>(*next_value++);
}
template <>
std::optional<Tensor> Reader::take<std::optional<Tensor>>() {
  return std::get<std::optional<Tensor>>(*next_value++);
}
template <>
Tensor Reader::take<Tensor>() {
  const std::optional<Tensor> tensor = take<std::optional<Tensor>>();
  if (!tensor) throw std::runtime_error("torch refuses none where a tensor belongs");
  return *tensor;
}
template <>
std::vector<Tensor> Reader::take<std::vector<Tensor>>() {
  return std::get<fuzz::List>(*next_value++);
}

}  // namespace simt

namespace fuzz {

using torch::headeronly::ScalarType;

namespace {

const ScalarType kFloats[] = {ScalarType::Float, ScalarType::Double, ScalarType::BFloat16};

template <class T>
void fill(FuzzedDataProvider& data, const Tensor& tensor, int64_t top) {
  auto* values = static_cast<T*>(tensor.mutable_data_ptr());
  // Few bytes of the input make many numbers.
  uint32_t state = data.ConsumeIntegral<uint16_t>() | 1u;
  for (int64_t i = 0; i < tensor.numel(); ++i) {
    state = state * 1664525u + 1013904223u;
    const uint32_t high = state >> 8;
    if constexpr (std::is_integral_v<T>) {
      values[i] = static_cast<T>(high % static_cast<uint32_t>(top));
    } else {
      const float number = static_cast<float>(high % 2001) / 1000.0f - 1.0f;
      if constexpr (std::is_same_v<T, hiermt::BFloat16>) {
        uint32_t bits;
        std::memcpy(&bits, &number, sizeof(bits));
        values[i].bits = static_cast<uint16_t>(bits >> 16);
      } else {
        values[i] = static_cast<T>(number);
      }
    }
  }
}

Tensor with_storage_of(ScalarType type, std::vector<int64_t> sizes) {
  return torch::stable::empty({sizes.data(), sizes.size()}, type);
}

struct Problem {
  explicit Problem(FuzzedDataProvider& data) : data(data) {
    type = data.PickValueInArray(kFloats);
    nodes = data.ConsumeIntegralInRange<int64_t>(0, 6);
    copies = data.ConsumeIntegralInRange<int64_t>(0, 3);
    steps = data.ConsumeIntegralInRange<int64_t>(0, 5);
    channels = data.ConsumeIntegralInRange<int64_t>(1, 9);
    hidden = data.ConsumeIntegralInRange<int64_t>(1, 18);
    layers = data.ConsumeIntegralInRange<int64_t>(1, 2);
    gat = data.ConsumeBool();
    edge = data.ConsumeBool();
    windows = data.ConsumeBool();
    sequence = data.ConsumeBool();
    state = data.ConsumeBool();
  }

  Tensor floats(std::vector<int64_t> sizes) { return random_tensor(data, type, std::move(sizes)); }
  int64_t flag() { return data.ConsumeBool(); }
  // N of everything but x and g.
  int64_t rows() const { return nodes * copies; }
  int64_t days() const { return windows ? steps + 3 : steps; }
  int64_t series() const { return windows ? nodes : rows(); }

  List csr() {
    const int64_t edges = nodes == 0 ? 0 : data.ConsumeIntegralInRange<int64_t>(0, 12);
    const ScalarType index = data.ConsumeBool() ? ScalarType::Int : ScalarType::Long;
    const Tensor ends = random_tensor(data, index, {2, edges}, nodes == 0 ? 1 : nodes);
    const List found = run({"graph_prepare", {ends, nodes, int64_t{gat ? 0 : 1}}});
    const int64_t used = static_cast<const int32_t*>(found[0].const_data_ptr())[nodes];
    entries = used;
    const auto cut = [&](const Tensor& list) {
      return torch::stable::clone(torch::stable::narrow(list, 0, 0, used));
    };
    return {found[0], cut(found[1]), found[3], cut(found[4]), cut(found[5]), found[6]};
  }

  List convs() {
    List list;
    for (int64_t k = 0; k < layers; ++k) {
      const int64_t inputs = k == 0 ? channels : hidden;
      for (int i = 0; i < (gat ? 2 : 1); ++i) {
        list.push_back(floats({hidden, inputs}));
        list.push_back(floats({hidden}));
      }
      if (!gat) continue;
      list.push_back(floats({1, 1, hidden}));
      list.push_back(floats({hidden}));
      if (edge) list.push_back(floats({hidden, 1}));
    }
    return list;
  }

  List gates() {
    List list;
    for (int i = 0; i < 3; ++i) {
      list.push_back(floats({hidden, channels + 2 * hidden}));
      list.push_back(floats({hidden}));
    }
    return list;
  }

  std::optional<Tensor> weight() {
    if (gat && !edge) return std::nullopt;
    return floats({entries});
  }
  std::optional<Tensor> h0() {
    if (!state) return std::nullopt;
    return floats({rows(), hidden});
  }
  std::optional<Tensor> starts() {
    if (!windows) return std::nullopt;
    return random_tensor(data, ScalarType::Long, {copies}, 4);
  }
  // Where a node is there.
  std::optional<Tensor> present() {
    if (!data.ConsumeBool()) return std::nullopt;
    return random_tensor(data, ScalarType::Bool, {series(), days()}, 2);
  }
  Tensor cotangent() { return sequence ? floats({rows(), steps, hidden}) : floats({rows(), hidden}); }

  FuzzedDataProvider& data;
  ScalarType type;
  int64_t nodes, copies, steps, channels, hidden, layers, entries = 0;
  bool gat, edge, windows, sequence, state;
};

// The sequence that a forward saved: its result where that is the sequence.
const Tensor& saved_states(const Problem& p, const List& found) {
  return p.sequence ? found[0] : found[1];
}

Call conv_stack(Problem& p, bool backward) {
  const List csr = p.csr();
  p.windows = false;
  const Tensor x = p.floats({p.rows(), p.steps, p.channels});
  const std::optional<Tensor> weight = p.weight(), present = p.present();
  const int64_t activation = p.data.ConsumeIntegralInRange<int64_t>(0, 3);
  const List convs = p.convs();
  const Call forward{"conv_stack", {x, csr, weight, convs, present, p.layers, activation, int64_t{0}}};
  if (!backward) return forward;
  const List found = run(forward);
  return {"conv_stack_backward",
          {p.floats({p.rows(), p.steps, p.hidden}), x, csr, weight, convs, present, found[0], p.layers,
           activation, int64_t{0}, p.flag(), p.flag(), p.flag()}};
}

Call gated_scan(Problem& p, bool backward) {
  const Tensor x = p.floats({p.series(), p.days(), p.channels}),
               g = p.floats({p.series(), p.days(), p.hidden});
  const std::optional<Tensor> h0 = p.h0(), starts = p.starts(), present = p.present();
  const List gates = p.gates();
  const int64_t sequence = p.sequence;
  const Call forward{
      "gated_scan",
      {x, g, h0, gates, starts, present, p.steps, sequence, int64_t{backward || p.flag()}, int64_t{0}}};
  if (!backward) return forward;
  const List found = run(forward);
  return {"gated_scan_backward",
          {p.cotangent(), x, g, h0, gates, starts, present, saved_states(p, found), found[2], p.steps,
           sequence, int64_t{0}, p.flag(), p.flag(), p.flag(), p.flag()}};
}

Call tgcn_layer(Problem& p, bool backward) {
  const List csr = p.csr();
  const Tensor x = p.floats({p.series(), p.days(), p.channels});
  const std::optional<Tensor> weight = p.weight(), h0 = p.h0(), starts = p.starts(), present = p.present();
  const List convs = p.convs(), gates = p.gates();
  const int64_t between = p.flag(), sequence = p.sequence;
  const Call forward{"tgcn_layer",
                     {x, csr, weight, convs, gates, h0, starts, present, p.steps, p.layers, between, sequence,
                      int64_t{backward || p.flag()}, int64_t{0}}};
  if (!backward) return forward;
  const List found = run(forward);
  return {"tgcn_layer_backward", {p.cotangent(), x,          csr,      weight,   convs,
                                  gates,         h0,         starts,   present,  saved_states(p, found),
                                  found[2],      found[3],   p.steps,  p.layers, between,
                                  sequence,      int64_t{0}, p.flag(), p.flag(), p.flag(),
                                  p.flag(),      p.flag()}};
}

Call tgcn_layer_decision(Problem& p) {
  const List csr = p.csr();
  const Tensor x = p.floats({p.series(), p.days(), p.channels});
  const std::optional<Tensor> weight = p.weight(), h0 = p.h0(), starts = p.starts(), present = p.present();
  const List convs = p.convs(), gates = p.gates();
  const int64_t features = p.channels;
  const List heads = {p.floats({features, p.hidden}), p.floats({features}),
                      p.floats({2, features}),        p.floats({2}),
                      p.floats({2, features}),        p.floats({2})};
  const int64_t between = p.flag();
  return {"tgcn_layer_decision",
          {x, csr, weight, convs, gates, heads, h0, starts, present, 0.5,
           p.data.ConsumeIntegralInRange<int64_t>(0, 15), p.steps, p.layers, between, int64_t{0}}};
}

Call decision(Problem& p, bool backward) {
  const Tensor h = p.floats({p.rows(), p.hidden}), weight = p.floats({p.channels, p.hidden});
  const Tensor bias = p.floats({p.channels}), signal = p.floats({2, p.channels}),
               direction = p.floats({2, p.channels});
  const Tensor signal_bias = p.floats({2}), direction_bias = p.floats({2});
  if (!backward) {
    return {"decision",
            {h, weight, bias, signal, signal_bias, direction, direction_bias, 0.5,
             p.data.ConsumeIntegralInRange<int64_t>(0, 15)}};
  }
  const auto maybe = [&]() -> std::optional<Tensor> {
    if (p.flag()) return std::nullopt;
    return p.floats({p.rows(), 2});
  };
  const std::optional<Tensor> d_signal = maybe();
  return {"decision_backward", {d_signal, maybe(), h, weight, bias, signal, direction, p.flag(), p.flag()}};
}

Call decision_from_logits(Problem& p) {
  const Tensor signal = p.floats({p.rows(), 2});
  return {"decision_from_logits",
          {signal, p.floats({p.rows(), 2}), 0.5, p.data.ConsumeIntegralInRange<int64_t>(0, 15)}};
}

Call multitask_loss(Problem& p, bool backward) {
  const Tensor signal = p.floats({p.rows(), 2}), direction = p.floats({p.rows(), 2});
  const Tensor targets = random_tensor(p.data, ScalarType::Long, {p.rows()}, 2);
  const Tensor directions = random_tensor(p.data, ScalarType::Long, {p.rows()}, 2);
  const auto maybe = [&](ScalarType type, int64_t size) -> std::optional<Tensor> {
    if (p.flag()) return std::nullopt;
    Tensor found = random_tensor(p.data, type, {size}, 2);
    if (type == ScalarType::Double) {
      auto* values = static_cast<double*>(found.mutable_data_ptr());
      for (int64_t i = 0; i < size; ++i) values[i] = values[i] < 0 ? -values[i] : values[i];
    }
    return found;
  };
  const std::optional<Tensor> mask = maybe(ScalarType::Bool, p.rows()),
                              row_mask = maybe(ScalarType::Bool, p.rows());
  const std::optional<Tensor> first = maybe(ScalarType::Double, 2), second = maybe(ScalarType::Double, 2);
  const double smoothing = p.flag() ? 0.1 : 0.0, gamma = p.flag() ? 2.0 : 0.0;
  const Call forward{
      "multitask_loss",
      {signal, direction, targets, directions, mask, 0.7, first, second, smoothing, gamma, row_mask}};
  if (!backward) return forward;
  const List found = run(forward);
  const auto cotangent = [&]() -> std::optional<Tensor> {
    if (p.flag()) return std::nullopt;
    return p.floats({});
  };
  const std::optional<Tensor> total = cotangent(), d_signal = cotangent();
  return {"multitask_loss_backward",
          {total, d_signal, cotangent(), signal, direction, targets, directions, mask, found[3], 0.7,
           p.flag(), p.flag(), first, second, smoothing, gamma, row_mask}};
}

}  // namespace

Tensor random_tensor(FuzzedDataProvider& data, ScalarType type, std::vector<int64_t> sizes, int64_t top) {
  Tensor tensor = with_storage_of(type, std::move(sizes));
  switch (type) {
    case ScalarType::Float:
      fill<float>(data, tensor, top);
      break;
    case ScalarType::Double:
      fill<double>(data, tensor, top);
      break;
    case ScalarType::BFloat16:
      fill<hiermt::BFloat16>(data, tensor, top);
      break;
    case ScalarType::Int:
      fill<int32_t>(data, tensor, top);
      break;
    case ScalarType::Long:
      fill<int64_t>(data, tensor, top);
      break;
    default:
      fill<uint8_t>(data, tensor, top);
  }
  return tensor;
}

Call valid_call(FuzzedDataProvider& data) {
  const int which = data.ConsumeIntegralInRange<int>(0, 12);
  Problem problem(data);
  switch (which) {
    case 0: {
      const ScalarType index = problem.flag() ? ScalarType::Int : ScalarType::Long;
      const int64_t edges = problem.nodes == 0 ? 0 : problem.channels;
      const Tensor ends = random_tensor(data, index, {2, edges}, problem.nodes == 0 ? 1 : problem.nodes);
      return {"graph_prepare", {ends, problem.nodes, problem.flag()}};
    }
    case 1:
    case 2:
      return conv_stack(problem, which == 2);
    case 3:
    case 4:
      return gated_scan(problem, which == 4);
    case 5:
    case 6:
      return tgcn_layer(problem, which == 6);
    case 7:
    case 8:
      return decision(problem, which == 8);
    case 9:
      return decision_from_logits(problem);
    case 10:
      return tgcn_layer_decision(problem);
    default:
      return multitask_loss(problem, which == 12);
  }
}

std::vector<Tensor> run(const Call& call) {
  const auto found = simt::operators().find(call.op);
  if (found == simt::operators().end()) std::abort();
  next_value = call.arguments.data();
  simt::Reader reader;
  return found->second(reader);
}

}  // namespace fuzz
