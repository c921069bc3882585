// Runs a packaged model in a program without Python:
//
//   decide libhiermt.so model.pt2 NODES STEPS FEATURES
//
// The package calls the operators of hiermt, so that the library has to be loaded first. The input is sin(0), sin(1), ...
// over a ring of stocks, which export.py makes, too; replace it by your own tensors.
#include <ATen/ATen.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <vector>

namespace {

int64_t positive(const char* name, const char* text) {
  char* end = nullptr;
  const long long value = std::strtoll(text, &end, 10);
  if (*end == '\0' && value > 0) return value;
  std::fprintf(stderr, "%s: expected a positive whole number, got %s\n", name, text);
  std::exit(2);
}

std::vector<at::Tensor> example(int64_t nodes, int64_t steps, int64_t features) {
  const at::Tensor x = at::sin(at::arange(nodes * steps * features, at::kDouble))
                           .to(at::kFloat)
                           .view({nodes, steps, features});
  const at::Tensor source = at::arange(nodes, at::kLong);
  const at::Tensor edge_index = at::stack({source, (source + 1).remainder(nodes)});
  return {x, edge_index, at::full({nodes}, 0.5f)};
}

}  // namespace

int main(int count, char** words) {
  if (count != 6) {
    std::fprintf(stderr, "usage: decide libhiermt.so model.pt2 NODES STEPS FEATURES\n");
    return 2;
  }
  if (dlopen(words[1], RTLD_NOW | RTLD_GLOBAL) == nullptr) {
    std::fprintf(stderr, "%s\n", dlerror());
    return 1;
  }
  try {
    const std::vector<at::Tensor> inputs =
        example(positive("NODES", words[3]), positive("STEPS", words[4]), positive("FEATURES", words[5]));
    torch::inductor::AOTIModelPackageLoader loader(words[2]);
    const std::vector<at::Tensor> logits = loader.run(inputs);
    for (int64_t node = 0; node < logits[0].size(0); ++node) {
      for (const at::Tensor& head : logits)
        std::printf("%.9g %.9g ", head[node][0].item<double>(), head[node][1].item<double>());
      std::printf("\n");
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
