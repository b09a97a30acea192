// A .pte and its methods: load, set inputs, run, look at the output. Uses the runtime's core interface only.
#ifndef FEDMPQ_RUNNER_PROGRAM_H
#define FEDMPQ_RUNNER_PROGRAM_H

#include <cstdint>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace runner {

// Carries the exit code that fits: 2 usage, 5 format, 7 memory, 8 core, 1 other.
struct Problem : std::runtime_error {
  Problem(int code, const std::string& text) : std::runtime_error(text), exit_code(code) {}
  int exit_code;
};

struct Input {
  enum class Type { kByte, kLong } type;
  std::vector<int32_t> sizes;
  const void* data;
};

class Program {
 public:
  // limit: bytes that the delegate's arena may take, 0 for any. Throws Problem if the file is no program.
  Program(const std::string& path, int limit);
  ~Program();

  // The artifact inside the file.
  std::vector<uint8_t> Artifact() const;
  // Runs a method, loading it first if need be; returns its output's bytes, valid until the method runs again.
  const std::vector<uint8_t>& Run(const std::string& method, const std::vector<Input>& inputs);
  // The same for outputs of int64.
  const int64_t* Numbers(const std::string& method, const std::vector<Input>& inputs);

 private:
  struct Parts;
  struct Loaded;
  Loaded& Load(const std::string& method);
  std::unique_ptr<Parts> parts_;
  std::map<std::string, std::unique_ptr<Loaded>> methods_;
};

inline Input Words(const std::vector<int64_t>& words) {
  return {Input::Type::kLong, {static_cast<int32_t>(words.size())}, words.data()};
}

}  // namespace runner
#endif
