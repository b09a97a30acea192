// One training session of the delegate: artifact, plan, arena. Knows the integer core and nothing of ExecuTorch.
#ifndef FEDMPQ_EXECUTORCH_SESSION_H
#define FEDMPQ_EXECUTORCH_SESSION_H

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

extern "C" {
#include <fmpq/pool.h>

#include "artifact.h"
}

namespace fedmpq {

// What went wrong, as far as a runtime wants to tell cases apart; the sentence is in `text`.
enum class Code { kOk, kArgument, kMemory, kFormat, kState };

struct Status {
  Code code = Code::kOk;
  std::string text;
  bool ok() const { return code == Code::kOk; }
};

// Numbers of the method `plan`, in the order of its output.
struct Figures {
  int64_t arena_bytes;   // exact bytes of the arena
  int64_t other_bytes;   // what the delegate holds besides: the parsed program and this object
  int64_t limit_bytes;   // 0: none
  int64_t batch;         // samples of a step
};

class Session {
 public:
  // Reads an artifact (docs/artifact.md), plans its default plan and loads its weights. `data` is not needed afterwards.
  // limit: bytes that the arena may take, 0 for any. Where the plan takes more there is a session without an arena, which
  // says so in refusal() and waits for a plan that fits.
  static Status Open(const void* data, size_t size, uint64_t limit, std::unique_ptr<Session>* out);
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  // Puts another plan into place; weights and momentum are gone. fields: those of the artifact's plan in the order
  // batch, micro_batch, act_bits, guard, momentum, threads, crop, flip, decay_bn, recompute, bits of each weight layer.
  Status Replan(const int64_t* fields, size_t count);
  Status Step(const uint8_t* images, const int64_t* labels, uint32_t count, const int64_t key[4], const int64_t rates[5],
              const int64_t* lasso, int64_t stats[3]);
  Status Evaluate(const uint8_t* images, const int64_t* labels, uint32_t count, int64_t stats[3]);
  Status Predict(const uint8_t* images, uint32_t count, int32_t* logits);
  // One weight layer as a weights section (docs/artifact.md) of one layer.
  Status Load(int64_t layer, const uint8_t* data, size_t size);
  Status Read(int64_t layer, uint8_t* out, size_t room, size_t* size) const;
  Status Prune(int64_t eps_q16, int64_t* bits);

  Figures figures() const;
  const Status& refusal() const { return refusal_; }
  uint32_t layers() const { return static_cast<uint32_t>(records_.size()); }
  const fmpq_program& program() const { return program_; }

  std::mutex mutex;  // the runtime may execute methods of one program from several threads

 private:
  Session() = default;
  Status Arrange(const fmpq_plan& plan);
  void Release();
  Status Ready() const;
  Status CopyLabels(const int64_t* labels, uint32_t count);
  Status Layer(int64_t layer, uint32_t* record) const;

  fmpq_program program_;
  fmpq_plan plan_;
  uint32_t batch_ = 0;
  uint64_t limit_ = 0;
  Status refusal_;  // why there is no arena
  std::vector<uint32_t> records_;  // the record of each weight layer
  std::vector<bool> loaded_;
  std::vector<uint16_t> labels_;
  void* arena_ = nullptr;
  uint64_t arena_bytes_ = 0;
  fmpq_session* session_ = nullptr;
  fmpq_threads* threads_ = nullptr;
};

}  // namespace fedmpq
#endif
