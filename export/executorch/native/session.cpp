#include "session.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "section.h"

namespace fedmpq {
namespace {

constexpr size_t kPlanFields = 10;
constexpr uint32_t kLeastBatch = 1024;  // samples that a call of any program may have, as in methods.py

Code CodeOf(int error) {
  if (error == FMPQ_E_ARENA) return Code::kMemory;
  const bool format = (error >= 20 && error < 40) || (error >= 60 && error < 80) || error >= 100;
  return format ? Code::kFormat : Code::kArgument;
}

Status Failure(const std::string& what, int error) {
  return {CodeOf(error), what + ": " + fmpq_port_error_text(error)};
}

Status Argument(std::string text) { return {Code::kArgument, std::move(text)}; }

// The planner's scratch, aligned as the core wants it.
struct Scratch {
  Scratch() : bytes(std::aligned_alloc(FMPQ_ALIGN, Rounded(fmpq_plan_scratch()))) {}
  ~Scratch() { std::free(bytes); }
  static size_t Rounded(size_t n) { return (n + FMPQ_ALIGN - 1) / FMPQ_ALIGN * FMPQ_ALIGN; }
  void* bytes;
};

bool IsScale(int64_t mantissa, int64_t exponent) {
  const bool normal = mantissa >= int64_t{1} << 30 && mantissa < int64_t{1} << 31;
  return (mantissa == 0 || normal) && exponent >= -(1 << 15) && exponent <= 1 << 15;
}

fmpq_fx Scale(const int64_t* pair) {
  return {static_cast<uint32_t>(pair[0]), static_cast<int32_t>(pair[1])};
}

}  // namespace

Status Session::Open(const void* data, size_t size, uint64_t limit, std::unique_ptr<Session>* out) {
  const auto artifact = std::make_unique<fmpq_artifact>();
  int error = fmpq_artifact_open(data, size, artifact.get());
  if (error) return Failure("artifact", error);
  std::unique_ptr<Session> made(new Session());
  made->program_ = artifact->parsed;
  made->batch_ = artifact->batch;
  made->limit_ = limit;
  made->labels_.reserve(std::max(artifact->batch, kLeastBatch));  // now: a step allocates nothing
  for (uint32_t i = 0; i < artifact->n_layers; i++) made->records_.push_back(artifact->layer[i].record);
  made->refusal_ = made->Arrange(artifact->plan);
  if (made->refusal_.ok()) {
    error = fmpq_artifact_load(artifact.get(), made->session_);
    if (error) return Failure("artifact", error);
    made->loaded_.assign(made->records_.size(), true);
  } else if (made->refusal_.code != Code::kMemory) {
    return made->refusal_;
  }
  *out = std::move(made);
  return {};
}

Session::~Session() { Release(); }

void Session::Release() {
  if (threads_) fmpq_threads_free(threads_);
  std::free(arena_);
  threads_ = nullptr;
  session_ = nullptr;
  arena_ = nullptr;
  arena_bytes_ = 0;
}

// The arena is refused before the old one is given up, so a plan that does not fit changes nothing.
Status Session::Arrange(const fmpq_plan& plan) {
  fmpq_memory memory;
  const Scratch scratch;
  if (!scratch.bytes) return {Code::kMemory, "no memory for the planner"};
  int error = fmpq_plan_memory(&program_, &plan, scratch.bytes, &memory, nullptr, 0);
  if (error) return Failure("plan", error);
  if (limit_ && memory.total > limit_) {
    return {Code::kMemory, "the plan takes " + std::to_string(memory.total) + " bytes but " + std::to_string(limit_) +
                               " are allowed, " + std::to_string(memory.total - limit_) + " too few"};
  }
  Release();
  arena_ = std::aligned_alloc(FMPQ_ALIGN, Scratch::Rounded(memory.total));
  if (!arena_) return {Code::kMemory, "the system has no " + std::to_string(memory.total) + " bytes for the arena"};
  std::memset(arena_, 0, memory.total);  // pages are had now or never, not in the middle of a step
  arena_bytes_ = memory.total;
  plan_ = plan;
  loaded_.assign(records_.size(), false);
  error = fmpq_init(&program_, &plan_, arena_, memory.total, scratch.bytes, &session_);
  if (error) return Failure("session", error);
  if (plan_.threads > 1) {
    threads_ = fmpq_threads_new(plan_.threads);
    if (!threads_) return {Code::kMemory, "cannot start " + std::to_string(plan_.threads) + " threads"};
    fmpq_threads_attach(threads_, session_);
  }
  return {};
}

Status Session::Replan(const int64_t* fields, size_t count) {
  static const struct {
    const char* name;
    int64_t low, high;
  } kRanges[kPlanFields] = {
      {"batch", 1, 65535}, {"micro_batch", 1, 65535}, {"act_bits", 4, 8}, {"guard", 0, 8},    {"momentum", 0, 1},
      {"threads", 1, 64},  {"crop", 0, 1},            {"flip", 0, 1},     {"decay_bn", 0, 1}, {"recompute", 0, 2},
  };
  if (count != kPlanFields + records_.size()) {
    return Argument("the plan has " + std::to_string(count) + " fields, this program takes " +
                    std::to_string(kPlanFields + records_.size()));
  }
  if (std::all_of(fields, fields + count, [](int64_t value) { return value == 0; })) return {};  // a question only
  for (size_t i = 0; i < kPlanFields; i++) {
    if (fields[i] < kRanges[i].low || fields[i] > kRanges[i].high) {
      return Argument(std::string("plan: ") + kRanges[i].name + " = " + std::to_string(fields[i]) + " is not in " +
                      std::to_string(kRanges[i].low) + ".." + std::to_string(kRanges[i].high));
    }
  }
  if (fields[1] > fields[0]) return Argument("plan: micro_batch exceeds batch");
  fmpq_plan plan;
  std::memset(&plan, 0, sizeof(plan));
  plan.batch = static_cast<uint32_t>(fields[1]);
  plan.accumulate = fields[1] < fields[0];
  plan.act_bits = static_cast<uint8_t>(fields[2]);
  plan.guard = static_cast<uint8_t>(fields[3]);
  plan.momentum = static_cast<uint8_t>(fields[4]);
  plan.threads = static_cast<uint8_t>(fields[5]);
  plan.crop = static_cast<uint8_t>(fields[6]);
  plan.flip = static_cast<uint8_t>(fields[7]);
  plan.decay_bn = static_cast<uint8_t>(fields[8]);
  plan.recompute = static_cast<uint8_t>(fields[9]);
  for (size_t i = 0; i < records_.size(); i++) {
    const int64_t bits = fields[kPlanFields + i];
    if (bits < 1 || bits > 8) return Argument("plan: layer " + std::to_string(i) + " has " + std::to_string(bits) + " bits");
    plan.bits[records_[i]] = static_cast<uint8_t>(bits);
  }
  const Status arranged = Arrange(plan);
  if (arranged.ok()) batch_ = static_cast<uint32_t>(fields[0]);
  if (arranged.ok() || !session_) refusal_ = arranged;
  return arranged;
}

Status Session::Ready() const {
  if (!session_) return refusal_;
  for (size_t i = 0; i < loaded_.size(); i++) {
    if (!loaded_[i]) return {Code::kState, std::string("layer ") + program_.rec[records_[i]].name + " has not been loaded"};
  }
  return {};
}

Status Session::CopyLabels(const int64_t* labels, uint32_t count) {
  labels_.resize(count);
  for (uint32_t i = 0; i < count; i++) {
    if (labels[i] < 0 || labels[i] >= program_.classes) {
      return Argument("label " + std::to_string(labels[i]) + " of sample " + std::to_string(i) + " is not in 0.." +
                      std::to_string(program_.classes - 1));
    }
    labels_[i] = static_cast<uint16_t>(labels[i]);
  }
  return {};
}

Status Session::Step(const uint8_t* images, const int64_t* labels, uint32_t count, const int64_t key[4],
                     const int64_t rates[5], const int64_t* lasso, int64_t stats[3]) {
  Status status = Ready();
  if (status.ok()) status = CopyLabels(labels, count);
  if (!status.ok()) return status;
  fmpq_hyper hyper;
  std::memset(&hyper, 0, sizeof(hyper));
  if (!IsScale(rates[0], rates[1]) || !IsScale(rates[2], rates[3])) return Argument("rates: not normalised m * 2^e");
  if (rates[4] < 0 || rates[4] > 32767) return Argument("rates: the momentum is not in 0..32767");
  hyper.lr = Scale(rates);
  hyper.decay = Scale(rates + 2);
  hyper.momentum_q15 = static_cast<int32_t>(rates[4]);
  for (size_t i = 0; i < records_.size(); i++) {
    if (!IsScale(lasso[2 * i], lasso[2 * i + 1])) return Argument("lasso: not normalised m * 2^e");
    hyper.lasso[records_[i]] = Scale(lasso + 2 * i);
    hyper.has_lasso |= lasso[2 * i] != 0;
  }
  for (int i = 0; i < 4; i++) {
    if (key[i] < 0 || key[i] > INT64_C(0xffffffff)) return Argument("key: a word is not in 0..2^32-1");
  }
  const fmpq_key words = {static_cast<uint32_t>(key[0]), static_cast<uint32_t>(key[1]), static_cast<uint32_t>(key[2]),
                          static_cast<uint32_t>(key[3])};
  fmpq_stats sums;
  const int error = fmpq_step(session_, images, labels_.data(), count, &hyper, words, &sums);
  if (error) return Failure("step", error);
  stats[0] = sums.loss_q16;
  stats[1] = sums.correct;
  stats[2] = sums.count;
  return {};
}

Status Session::Evaluate(const uint8_t* images, const int64_t* labels, uint32_t count, int64_t stats[3]) {
  Status status = Ready();
  if (status.ok()) status = CopyLabels(labels, count);
  if (!status.ok()) return status;
  fmpq_stats sums;
  const int error = fmpq_evaluate(session_, images, labels_.data(), count, &sums);
  if (error) return Failure("evaluate", error);
  stats[0] = sums.loss_q16;
  stats[1] = sums.correct;
  stats[2] = sums.count;
  return {};
}

Status Session::Predict(const uint8_t* images, uint32_t count, int32_t* logits) {
  const Status status = Ready();
  if (!status.ok()) return status;
  const int error = fmpq_predict(session_, images, count, logits);
  return error ? Failure("predict", error) : Status{};
}

Status Session::Layer(int64_t layer, uint32_t* record) const {
  if (!session_) return refusal_;
  if (layer < 0 || layer >= static_cast<int64_t>(records_.size())) {
    return Argument("layer " + std::to_string(layer) + " is not in 0.." + std::to_string(records_.size() - 1));
  }
  *record = records_[static_cast<size_t>(layer)];
  return {};
}

Status Session::Load(int64_t layer, const uint8_t* data, size_t size) {
  uint32_t record;
  Status status = Layer(layer, &record);
  if (!status.ok()) return status;
  const fmpq_record& r = program_.rec[record];
  const std::string where = std::string("layer ") + r.name;
  const uint32_t theta = fmpq_record_theta(&r);
  Section section;
  const char* problem = ParseSection(data, size, &section);
  if (problem) return {Code::kFormat, where + ": " + problem};
  if (section.theta != theta || section.params_bytes != fmpq_params_size(&r)) {
    return {Code::kFormat, where + " has " + std::to_string(theta) + " weights, the section " + std::to_string(section.theta)};
  }
  if (section.bits != plan_.bits[record] || section.guard != plan_.guard) {
    return {Code::kFormat, where + ": " + std::to_string(section.bits) + " bits and " + std::to_string(section.guard) +
                               " guard planes, planned are " + std::to_string(plan_.bits[record]) + " and " +
                               std::to_string(plan_.guard)};
  }
  loaded_[static_cast<size_t>(layer)] = false;
  int error = FMPQ_OK;
  for (uint32_t k = 0; k < section.planes() && !error; k++) {
    error = fmpq_load_plane(session_, record, k, section.plane(k), section.plane_bytes());
  }
  if (!error) error = fmpq_check_weights(session_, record);
  if (!error) error = fmpq_load_params(session_, record, section.step, section.params(), section.params_bytes);
  if (error) return Failure(where, error);
  loaded_[static_cast<size_t>(layer)] = true;
  return {};
}

Status Session::Read(int64_t layer, uint8_t* out, size_t room, size_t* size) const {
  uint32_t record;
  const Status status = Layer(layer, &record);
  if (!status.ok()) return status;
  const fmpq_record& r = program_.rec[record];
  Section section;
  section.bits = static_cast<uint32_t>(fmpq_bits(session_, record));
  section.guard = plan_.guard;
  section.theta = fmpq_record_theta(&r);
  section.params_bytes = fmpq_params_size(&r);
  if (section.bytes() > room) {
    return Argument(std::string("layer ") + r.name + " takes " + std::to_string(section.bytes()) + " bytes, there is room for " +
                    std::to_string(room));
  }
  section.data = out;
  int error = fmpq_read_params(session_, record, &section.step, section.params(), section.params_bytes);
  for (uint32_t k = 0; k < section.planes() && !error; k++) {
    error = fmpq_read_plane(session_, record, k, section.plane(k), section.plane_bytes());
  }
  if (error) return Failure(std::string("layer ") + r.name, error);
  WriteHead(section);
  *size = section.bytes();
  return {};
}

Status Session::Prune(int64_t eps_q16, int64_t* bits) {
  const Status status = Ready();
  if (!status.ok()) return status;
  if (eps_q16 < 0 || eps_q16 > 65536) return Argument("prune: eps is not in 0..65536");
  const int error = eps_q16 ? fmpq_prune(session_, static_cast<uint32_t>(eps_q16)) : FMPQ_OK;
  if (error) return Failure("prune", error);
  for (size_t i = 0; i < records_.size(); i++) bits[i] = fmpq_bits(session_, records_[i]);
  return {};
}

Figures Session::figures() const {
  const size_t other = sizeof(Session) + records_.capacity() * sizeof(uint32_t) + labels_.capacity() * sizeof(uint16_t);
  return {static_cast<int64_t>(arena_bytes_), static_cast<int64_t>(other), static_cast<int64_t>(limit_), batch_};
}

}  // namespace fedmpq
