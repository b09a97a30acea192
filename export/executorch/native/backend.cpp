// The ExecuTorch backend: each method of a training program is a delegate call on one session of the integer core.
//
// A delegate's blob names a method; the artifact lies once in the program's named data. All methods loaded from one
// program share a session, found by the program's data map, and the last one to be destroyed ends it.
#include "backend.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include <executorch/runtime/backend/interface.h>
#include <executorch/runtime/core/error.h>
#include <executorch/runtime/core/evalue.h>
#include <executorch/runtime/core/exec_aten/util/tensor_util.h>
#include <executorch/runtime/platform/log.h>

#include "session.h"

namespace fedmpq {
namespace {

using executorch::aten::ScalarType;
using executorch::aten::Tensor;
using executorch::runtime::ArrayRef;
using executorch::runtime::BackendExecutionContext;
using executorch::runtime::BackendInitContext;
using executorch::runtime::BackendInterface;
using executorch::runtime::BackendOption;
using executorch::runtime::BackendOptionContext;
using executorch::runtime::CompileSpec;
using executorch::runtime::DelegateHandle;
using executorch::runtime::Error;
using executorch::runtime::EValue;
using executorch::runtime::FreeableBuffer;
using executorch::runtime::NamedDataMap;
using executorch::runtime::Result;
using executorch::runtime::Span;

// The numbers are those of export/executorch/lowering.py.
enum class Op : uint16_t {
  kTrainStep = 1, kEvaluate = 2, kPredict = 3, kLoadPlanes = 4, kReadPlanes = 5, kPrune = 6, kPlan = 7,
};
constexpr uint16_t kLastOp = 7;

constexpr char kLimitKey[] = "memory_limit";
constexpr char kSessionKey[] = "session";

thread_local std::string last_error;
thread_local uint64_t thread_limit = 0;
uint64_t process_limit = 0;  // guarded by the registry's mutex

Error Fail(const Status& status) {
  last_error = status.text;
  ET_LOG(Error, "fedmpq: %s", status.text.c_str());
  switch (status.code) {
    case Code::kOk: return Error::Ok;
    case Code::kMemory: return Error::MemoryAllocationFailed;
    case Code::kFormat: return Error::DelegateInvalidCompatibility;
    case Code::kState: return Error::InvalidState;
    case Code::kArgument: break;
  }
  return Error::InvalidArgument;
}

Error Wrong(std::string text) { return Fail({Code::kArgument, std::move(text)}); }

// Sessions by the program they belong to: its data map's address, and a number where the caller wants several.
class Registry {
 public:
  using Key = std::pair<const NamedDataMap*, int>;

  Status Get(const Key& key, uint64_t limit, std::shared_ptr<Session>* out) {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::weak_ptr<Session>& slot = sessions_[key];
    *out = slot.lock();
    if (*out) return {};
    auto data = key.first->get_data(FEDMPQ_EXECUTORCH_ARTIFACT);
    if (!data.ok()) return {Code::kFormat, "the program holds no artifact"};
    for (const uint64_t other : {thread_limit, process_limit}) {
      if (other && (!limit || other < limit)) limit = other;
    }
    std::unique_ptr<Session> made;
    const Status status = Session::Open(data->data(), data->size(), limit, &made);
    data->Free();
    if (!status.ok()) {
      sessions_.erase(key);
      return status;
    }
    out->reset(made.release(), [this, key](Session* session) { End(key, session); });
    slot = *out;
    return {};
  }

  void set_limit(uint64_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    process_limit = bytes;
  }
  uint64_t limit() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return process_limit;
  }

 private:
  void End(const Key& key, Session* session) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = sessions_.find(key);
    if (found != sessions_.end() && found->second.expired()) sessions_.erase(found);
    delete session;
  }

  std::mutex mutex_;
  std::map<Key, std::weak_ptr<Session>> sessions_;
};

Registry& registry() {
  static Registry* const sessions = new Registry();  // lives as long as any handle
  return *sessions;
}

struct Handle {
  Op op;
  std::shared_ptr<Session> session;
};

// ---- tensors ----------------------------------------------------------------------------------------------------

class Arguments {
 public:
  explicit Arguments(Span<EValue*> values) : values_(values) {}

  Error Expect(size_t count) const {
    if (values_.size() == count) return Error::Ok;
    return Wrong("the call has " + std::to_string(values_.size()) + " values, " + std::to_string(count) + " are needed");
  }

  // Data of a contiguous tensor of the type and number of elements; nullptr and an error otherwise.
  template <typename T>
  T* Data(size_t index, const char* name, size_t elements) const {
    const Tensor* tensor = Typed<T>(index, name);
    if (!tensor) return nullptr;
    if (static_cast<size_t>(tensor->numel()) != elements) {
      Wrong(std::string(name) + " has " + std::to_string(tensor->numel()) + " elements, " + std::to_string(elements) +
            " are needed");
      return nullptr;
    }
    return static_cast<T*>(tensor->mutable_data_ptr());
  }

  template <typename T>
  const Tensor* Typed(size_t index, const char* name) const {
    constexpr ScalarType type = sizeof(T) == 1 ? ScalarType::Byte : sizeof(T) == 4 ? ScalarType::Int : ScalarType::Long;
    if (!values_[index]->isTensor() || values_[index]->toTensor().scalar_type() != type) {
      Wrong(std::string(name) + " is not a tensor of " + (sizeof(T) == 1 ? "uint8" : sizeof(T) == 4 ? "int32" : "int64"));
      return nullptr;
    }
    const Tensor& tensor = values_[index]->toTensor();
    const auto order = tensor.dim_order();
    for (size_t i = 0; i < order.size(); i++) {
      if (order[i] != i) {
        Wrong(std::string(name) + " is not contiguous");
        return nullptr;
      }
    }
    return &tensor;
  }

  // Images u8 [B, H, W, C]: the data and B.
  const uint8_t* Images(const fmpq_program& program, uint32_t* count) const {
    const Tensor* tensor = Typed<uint8_t>(0, "images");
    if (!tensor) return nullptr;
    const bool shape = tensor->dim() == 4 && tensor->size(1) == program.in_h && tensor->size(2) == program.in_w &&
                       tensor->size(3) == program.in_c;
    if (!shape || tensor->size(0) < 1) {
      Wrong("images are not [batch, " + std::to_string(program.in_h) + ", " + std::to_string(program.in_w) + ", " +
            std::to_string(program.in_c) + "]");
      return nullptr;
    }
    *count = static_cast<uint32_t>(tensor->size(0));
    return tensor->const_data_ptr<uint8_t>();
  }

  Tensor& tensor(size_t index) const { return values_[index]->toTensor(); }

 private:
  Span<EValue*> values_;
};

Error Done(const Status& status) { return status.ok() ? Error::Ok : Fail(status); }

// ---- methods ----------------------------------------------------------------------------------------------------
// Arguments are inputs, then outputs, as in export/executorch/methods.py.

Error TrainStep(Session& s, const Arguments& a) {
  uint32_t count = 0;
  if (a.Expect(6) != Error::Ok) return Error::InvalidArgument;
  const uint8_t* images = a.Images(s.program(), &count);
  const int64_t* labels = images ? a.Data<int64_t>(1, "labels", count) : nullptr;
  const int64_t* key = labels ? a.Data<int64_t>(2, "key", 4) : nullptr;
  const int64_t* rates = key ? a.Data<int64_t>(3, "rates", 5) : nullptr;
  const int64_t* lasso = rates ? a.Data<int64_t>(4, "lasso", 2 * size_t{s.layers()}) : nullptr;
  int64_t* stats = lasso ? a.Data<int64_t>(5, "the output", 3) : nullptr;
  if (!stats) return Error::InvalidArgument;
  return Done(s.Step(images, labels, count, key, rates, lasso, stats));
}

Error Evaluate(Session& s, const Arguments& a) {
  uint32_t count = 0;
  if (a.Expect(3) != Error::Ok) return Error::InvalidArgument;
  const uint8_t* images = a.Images(s.program(), &count);
  const int64_t* labels = images ? a.Data<int64_t>(1, "labels", count) : nullptr;
  int64_t* stats = labels ? a.Data<int64_t>(2, "the output", 3) : nullptr;
  if (!stats) return Error::InvalidArgument;
  return Done(s.Evaluate(images, labels, count, stats));
}

Error Predict(Session& s, const Arguments& a) {
  uint32_t count = 0;
  if (a.Expect(2) != Error::Ok) return Error::InvalidArgument;
  const uint8_t* images = a.Images(s.program(), &count);
  if (!images) return Error::InvalidArgument;
  const executorch::aten::SizesType sizes[2] = {static_cast<executorch::aten::SizesType>(count), s.program().classes};
  const Error resized = executorch::runtime::resize_tensor(a.tensor(1), {sizes, 2});
  if (resized != Error::Ok) return resized;
  int32_t* logits = a.Data<int32_t>(1, "the output", size_t{count} * s.program().classes);
  if (!logits) return Error::InvalidArgument;
  return Done(s.Predict(images, count, logits));
}

Error LoadPlanes(Session& s, const Arguments& a) {
  if (a.Expect(3) != Error::Ok) return Error::InvalidArgument;
  const int64_t* layer = a.Data<int64_t>(0, "layer", 1);
  const Tensor* section = layer ? a.Typed<uint8_t>(1, "weights") : nullptr;
  int64_t* used = section ? a.Data<int64_t>(2, "the output", 1) : nullptr;
  if (!used) return Error::InvalidArgument;
  *used = section->numel();
  return Done(s.Load(*layer, section->const_data_ptr<uint8_t>(), static_cast<size_t>(section->numel())));
}

Error ReadPlanes(Session& s, const Arguments& a) {
  if (a.Expect(2) != Error::Ok) return Error::InvalidArgument;
  const int64_t* layer = a.Data<int64_t>(0, "layer", 1);
  const Tensor* out = layer ? a.Typed<uint8_t>(1, "the output") : nullptr;
  if (!out) return Error::InvalidArgument;
  uint8_t* bytes = out->mutable_data_ptr<uint8_t>();
  const size_t room = static_cast<size_t>(out->numel());
  size_t size = 0;
  const Status status = s.Read(*layer, bytes, room, &size);
  if (status.ok()) std::memset(bytes + size, 0, room - size);
  return Done(status);
}

Error Prune(Session& s, const Arguments& a) {
  if (a.Expect(2) != Error::Ok) return Error::InvalidArgument;
  const int64_t* eps = a.Data<int64_t>(0, "eps", 1);
  int64_t* bits = eps ? a.Data<int64_t>(1, "the output", s.layers()) : nullptr;
  if (!bits) return Error::InvalidArgument;
  return Done(s.Prune(*eps, bits));
}

Error PlanOrTell(Session& s, const Arguments& a) {
  if (a.Expect(2) != Error::Ok) return Error::InvalidArgument;
  const Tensor* fields = a.Typed<int64_t>(0, "fields");
  int64_t* out = fields ? a.Data<int64_t>(1, "the output", 4) : nullptr;
  if (!out) return Error::InvalidArgument;
  const Status status = s.Replan(fields->const_data_ptr<int64_t>(), static_cast<size_t>(fields->numel()));
  const Figures figures = s.figures();
  const int64_t values[4] = {figures.arena_bytes, figures.other_bytes, figures.limit_bytes, figures.batch};
  std::copy(values, values + 4, out);
  return Done(status);
}

// ---- backend ----------------------------------------------------------------------------------------------------

uint32_t Get16(const uint8_t* p) { return p[0] | static_cast<uint32_t>(p[1]) << 8; }

// A delegate's blob: magic, version, method, 4 zero bytes.
Status ParseBlob(const void* data, size_t size, Op* op) {
  const auto* bytes = static_cast<const uint8_t*>(data);
  if (size < 12 || std::memcmp(bytes, "FMPQDLGT", 8) != 0) return {Code::kFormat, "not a delegate of fedmpq"};
  const uint32_t version = Get16(bytes + 8), number = Get16(bytes + 10);
  if (version != FEDMPQ_EXECUTORCH_VERSION) {
    return {Code::kFormat, "the program's delegates have version " + std::to_string(version) + ", this backend runs version " +
                               std::to_string(FEDMPQ_EXECUTORCH_VERSION) + ": export the model again"};
  }
  if (number < 1 || number > kLastOp) return {Code::kFormat, "unknown method " + std::to_string(number)};
  *op = static_cast<Op>(number);
  return {};
}

uint64_t LimitOf(ArrayRef<CompileSpec> specs) {
  for (const CompileSpec& spec : specs) {
    if (std::strcmp(spec.key, kLimitKey) != 0 || spec.value.nbytes != 8) continue;
    const auto* bytes = static_cast<const uint8_t*>(spec.value.buffer);
    uint64_t value = 0;
    for (int i = 7; i >= 0; i--) value = value << 8 | bytes[i];
    return value;
  }
  return 0;
}

class FedmpqBackend final : public BackendInterface {
 public:
  bool is_available() const override { return true; }

  Result<DelegateHandle*> init(BackendInitContext& context, FreeableBuffer* processed,
                               ArrayRef<CompileSpec> specs) const override {
    auto handle = std::make_unique<Handle>();
    Status status = ParseBlob(processed->data(), processed->size(), &handle->op);
    processed->Free();
    if (!status.ok()) return Fail(status);
    const NamedDataMap* data = context.get_named_data_map();
    if (!data) return Fail({Code::kFormat, "the program holds no artifact"});
    uint64_t limit = LimitOf(specs);
    const auto given = context.get_runtime_spec<int>(kLimitKey);
    if (given.ok() && *given > 0 && (!limit || static_cast<uint64_t>(*given) < limit)) limit = static_cast<uint64_t>(*given);
    const auto number = context.get_runtime_spec<int>(kSessionKey);
    status = registry().Get({data, number.ok() ? *number : 0}, limit, &handle->session);
    // the method `plan` is where a plan that fits can come from, so it loads without an arena, too
    if (status.ok() && handle->op != Op::kPlan) status = handle->session->refusal();
    if (!status.ok()) return Fail(status);
    return handle.release();
  }

  Error execute(BackendExecutionContext&, DelegateHandle* given, Span<EValue*> values) const override {
    Handle& handle = *static_cast<Handle*>(given);
    Session& session = *handle.session;
    const Arguments arguments(values);
    const std::lock_guard<std::mutex> lock(session.mutex);
    switch (handle.op) {
      case Op::kTrainStep: return TrainStep(session, arguments);
      case Op::kEvaluate: return Evaluate(session, arguments);
      case Op::kPredict: return Predict(session, arguments);
      case Op::kLoadPlanes: return LoadPlanes(session, arguments);
      case Op::kReadPlanes: return ReadPlanes(session, arguments);
      case Op::kPrune: return Prune(session, arguments);
      case Op::kPlan: return PlanOrTell(session, arguments);
    }
    return Error::NotSupported;
  }

  void destroy(DelegateHandle* handle) const override { delete static_cast<Handle*>(handle); }

  Error set_option(BackendOptionContext&, const Span<BackendOption>& options) override {
    for (const BackendOption& option : options) {
      const int* value = std::get_if<int>(&option.value);
      if (std::strcmp(option.key, kLimitKey) != 0 || !value || *value < 0) {
        return Wrong(std::string("option ") + option.key + ": there is " + kLimitKey + ", a number of bytes");
      }
      registry().set_limit(static_cast<uint64_t>(*value));
    }
    return Error::Ok;
  }

  Error get_option(BackendOptionContext&, Span<BackendOption>& options) override {
    for (BackendOption& option : options) {
      if (std::strcmp(option.key, kLimitKey) == 0) option.value = static_cast<int>(registry().limit());
    }
    return Error::Ok;
  }
};

FedmpqBackend backend;
const Error registered = executorch::runtime::register_backend({FEDMPQ_EXECUTORCH_BACKEND, &backend});

}  // namespace
}  // namespace fedmpq

extern "C" {
const char* fedmpq_executorch_error(void) { return fedmpq::last_error.c_str(); }
void fedmpq_executorch_limit(uint64_t bytes) { fedmpq::thread_limit = bytes; }
const char* fedmpq_executorch_core(void) { return fmpq_version(); }
int fedmpq_executorch_isa(const char* name) { return fmpq_set_isa(name); }
}
