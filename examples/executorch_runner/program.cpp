#include "program.h"

#include <optional>

#include <executorch/extension/data_loader/file_data_loader.h>
#include <executorch/extension/memory_allocator/malloc_memory_allocator.h>
#include <executorch/runtime/backend/backend_options_map.h>
#include <executorch/runtime/executor/method.h>
#include <executorch/runtime/executor/program.h>
#include <executorch/runtime/platform/runtime.h>

#include "backend.h"

namespace runner {
namespace {

namespace et = executorch::runtime;
using executorch::aten::ScalarType;
using executorch::aten::Tensor;
using executorch::aten::TensorImpl;
using executorch::extension::FileDataLoader;
using executorch::extension::MallocMemoryAllocator;

[[noreturn]] void Throw(const std::string& where, et::Error error) {
  const std::string told = fedmpq_executorch_error();
  const int code = error == et::Error::MemoryAllocationFailed                                                     ? 7
                   : error == et::Error::DelegateInvalidCompatibility || error == et::Error::InvalidProgram ? 5
                                                                                                                  : 8;
  char number[16];
  std::snprintf(number, sizeof(number), "0x%02x", static_cast<unsigned>(error));
  throw Problem(code, where + ": " + (told.empty() ? "ExecuTorch's error " + std::string(number) : told));
}

}  // namespace

struct Program::Parts {
  Parts(FileDataLoader&& file, const std::string& path) : loader(std::move(file)), program(Opened(path)) {}
  et::Program Opened(const std::string& path) {
    auto opened = et::Program::load(&loader, et::Program::Verification::InternalConsistency);
    if (!opened.ok()) throw Problem(5, path + " is not an ExecuTorch program this runtime reads");
    return std::move(*opened);
  }
  FileDataLoader loader;
  et::Program program;
  et::BackendOptions<1> options;
  et::LoadBackendOptionsMap load_options;
};

// A method with its memory. Nothing is planned for a training program's tensors: inputs and outputs are ours.
struct Program::Loaded {
  MallocMemoryAllocator permanent, temporary;
  std::vector<std::vector<uint8_t>> planned;
  std::vector<et::Span<uint8_t>> spans;
  std::optional<et::HierarchicalAllocator> activations;
  std::optional<et::MemoryManager> manager;
  std::optional<et::Method> method;
  std::vector<uint8_t> output;
};

Program::Program(const std::string& path, int limit) {
  et::runtime_init();
  auto file = FileDataLoader::from(path.c_str());
  if (!file.ok()) throw Problem(5, path + " cannot be read");
  parts_ = std::make_unique<Parts>(std::move(*file), path);
  if (!limit) return;
  et::Error error = parts_->options.set_option("memory_limit", limit);
  if (error == et::Error::Ok) error = parts_->load_options.set_options(FEDMPQ_EXECUTORCH_BACKEND, parts_->options.view());
  if (error != et::Error::Ok) Throw("memory_limit", error);
}

Program::~Program() = default;

std::vector<uint8_t> Program::Artifact() const {
  auto map = parts_->program.get_named_data_map();
  if (!map.ok()) throw Problem(5, "the program holds no artifact: write it with fedmpq export --target executorch");
  auto data = (*map)->get_data(FEDMPQ_EXECUTORCH_ARTIFACT);
  if (!data.ok()) throw Problem(5, "the program holds no artifact: write it with fedmpq export --target executorch");
  const auto* bytes = static_cast<const uint8_t*>(data->data());
  return {bytes, bytes + data->size()};
}

Program::Loaded& Program::Load(const std::string& name) {
  std::unique_ptr<Loaded>& slot = methods_[name];
  if (slot) return *slot;
  auto made = std::make_unique<Loaded>();
  auto meta = parts_->program.method_meta(name.c_str());
  if (!meta.ok()) throw Problem(5, "the program has no method " + name);
  for (size_t i = 0; i < meta->num_memory_planned_buffers(); i++) {
    made->planned.emplace_back(static_cast<size_t>(*meta->memory_planned_buffer_size(i)));
  }
  for (auto& buffer : made->planned) made->spans.emplace_back(buffer.data(), buffer.size());
  made->activations.emplace(et::Span<et::Span<uint8_t>>(made->spans.data(), made->spans.size()));
  made->manager.emplace(&made->permanent, &*made->activations, &made->temporary);
  auto method = parts_->program.load_method(name.c_str(), &*made->manager, nullptr, nullptr, &parts_->load_options);
  if (!method.ok()) {
    methods_.erase(name);
    Throw("method " + name, method.error());
  }
  made->method.emplace(std::move(*method));
  auto output = made->method->method_meta().output_tensor_meta(0);
  if (!output.ok()) Throw("method " + name, output.error());
  made->output.resize(output->nbytes());
  const et::Error error = made->method->set_output_data_ptr(made->output.data(), made->output.size(), 0);
  if (error != et::Error::Ok) Throw("method " + name, error);
  slot = std::move(made);
  return *slot;
}

const std::vector<uint8_t>& Program::Run(const std::string& name, const std::vector<Input>& inputs) {
  Loaded& loaded = Load(name);
  std::vector<std::unique_ptr<TensorImpl>> tensors;
  std::vector<std::vector<uint8_t>> orders;
  std::vector<std::vector<int32_t>> strides;
  for (size_t i = 0; i < inputs.size(); i++) {
    const Input& input = inputs[i];
    const size_t dims = input.sizes.size();
    orders.emplace_back(dims);
    strides.emplace_back(dims);
    int32_t stride = 1;
    for (size_t d = dims; d-- > 0;) {
      orders.back()[d] = static_cast<uint8_t>(d);
      strides.back()[d] = stride;
      stride *= input.sizes[d];
    }
    tensors.push_back(std::make_unique<TensorImpl>(
        input.type == Input::Type::kByte ? ScalarType::Byte : ScalarType::Long, static_cast<ssize_t>(dims),
        const_cast<int32_t*>(input.sizes.data()), const_cast<void*>(input.data), orders.back().data(),
        strides.back().data()));
    const et::Error error = loaded.method->set_input(Tensor(tensors.back().get()), i);
    if (error != et::Error::Ok) Throw("method " + name + ", input " + std::to_string(i), error);
  }
  const et::Error error = loaded.method->execute();
  if (error != et::Error::Ok) Throw("method " + name, error);
  return loaded.output;
}

const int64_t* Program::Numbers(const std::string& name, const std::vector<Input>& inputs) {
  return reinterpret_cast<const int64_t*>(Run(name, inputs).data());
}

}  // namespace runner
