// Trains a .pte on a shard, as `fedmpq train --schedule constant` does: the same lines, the same bits.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

extern "C" {
#include "artifact.h"
#include "sha256.h"
#include "shard.h"
}

#include "program.h"

namespace {

using runner::Input;
using runner::Problem;
using runner::Program;

constexpr char kUsage[] =
    "usage: fedmpq_runner PROGRAM.pte SHARD [--epochs N] [--lr R] [--decay R] [--momentum R] [--seed N]\n"
    "       [--limit BYTES] [--out FILE.fmpq]\n"
    "Trains the program's weights on a shard of labelled images (fedmpq data partition) and prints one JSON line for\n"
    "each epoch and one for the result. --limit: bytes that the delegate's arena may take. --out: trained artifact.\n";

struct Options {
  std::string program, shard, out;
  long epochs = 1, seed = 0;
  int limit = 0;
  double lr = 0.1, decay = 5e-4, momentum = 0.9;
};

double Number(const std::string& name, const std::string& text, double low, double high, bool whole) {
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  if (text.empty() || *end || !(value >= low && value <= high) || (whole && value != std::floor(value))) {
    throw Problem(2, name + " cannot be '" + text + "'");
  }
  return value;
}

Options Parse(int argc, char** argv) {
  Options o;
  for (int i = 1; i < argc; i++) {
    const std::string word = argv[i];
    if (word.rfind("--", 0) != 0) {
      (o.program.empty() ? o.program : o.shard) = word;
      continue;
    }
    const std::string value = i + 1 < argc ? argv[++i] : "";
    if (word == "--epochs") o.epochs = static_cast<long>(Number(word, value, 1, 1e6, true));
    else if (word == "--seed") o.seed = static_cast<long>(Number(word, value, 0, 4294967295.0, true));
    else if (word == "--limit") o.limit = static_cast<int>(Number(word, value, 1, 2147483647.0, true));
    else if (word == "--lr") o.lr = Number(word, value, 0, 1e6, false);
    else if (word == "--decay") o.decay = Number(word, value, 0, 1e3, false);
    else if (word == "--momentum") o.momentum = Number(word, value, 0, 0.99996, false);
    else if (word == "--out") o.out = value;
    else throw Problem(2, "there is no option " + word);
  }
  if (o.shard.empty()) throw Problem(2, "a program and a shard are needed; --help shows how");
  return o;
}

std::vector<uint8_t> ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::vector<uint8_t> data((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (!file.good() && data.empty()) throw Problem(4, path + " cannot be read");
  return data;
}

// m * 2^e, truncated to 31 bits as everywhere on the host side
void PushScale(double value, std::vector<int64_t>* out) {
  int exponent = 0;
  const double fraction = std::frexp(value, &exponent);
  out->push_back(value > 0 ? static_cast<int64_t>(std::ldexp(fraction, 31)) : 0);
  out->push_back(value > 0 ? exponent - 31 : 0);
}

uint32_t Get32(const uint8_t* p) {
  return p[0] | static_cast<uint32_t>(p[1]) << 8 | static_cast<uint32_t>(p[2]) << 16 | static_cast<uint32_t>(p[3]) << 24;
}

void Train(Program& program, const fmpq_artifact& artifact, const fmpq_shard& shard, const Options& o) {
  const uint32_t size = std::min(artifact.batch, shard.count), per_epoch = shard.count / size;
  const uint32_t micro = (size + artifact.plan.batch - 1) / artifact.plan.batch;
  std::vector<uint32_t> order(shard.count);
  std::vector<uint8_t> images(size * shard.image_bytes);
  std::vector<uint16_t> labels(size);
  std::vector<int64_t> rates, lasso(2 * size_t{artifact.n_layers});
  PushScale(o.lr, &rates);
  PushScale(o.decay, &rates);
  rates.push_back(static_cast<int64_t>(o.momentum * 32768 + 0.5));
  const auto extent = [](uint32_t value) { return static_cast<int32_t>(value); };
  for (long epoch = 0; epoch < o.epochs; epoch++) {
    int64_t sums[3] = {0, 0, 0};
    const fmpq_key shuffle = {static_cast<uint32_t>(o.seed), 0, 0, static_cast<uint32_t>(epoch)};
    fmpq_shard_order(shard.count, shuffle, order.data());
    for (uint32_t step = 0; step < per_epoch; step++) {
      fmpq_shard_gather(&shard, order.data() + size_t{step} * size, size, images.data(), labels.data());
      const std::vector<int64_t> targets(labels.begin(), labels.end());
      const std::vector<int64_t> key = {o.seed, 0, 0, (epoch * per_epoch + step) * int64_t{micro}};
      const int64_t* stats = program.Numbers(
          "train_step",
          {{Input::Type::kByte, {extent(size), extent(shard.height), extent(shard.width), extent(shard.channels)}, images.data()},
           runner::Words(targets), runner::Words(key), runner::Words(rates),
           {Input::Type::kLong, {extent(artifact.n_layers), 2}, lasso.data()}});
      for (int i = 0; i < 3; i++) sums[i] += stats[i];
    }
    std::printf("{\"epoch\":%ld,\"loss_q16\":%lld,\"correct\":%lld,\"count\":%lld}\n", epoch + 1,
                static_cast<long long>(sums[0]), static_cast<long long>(sums[1]), static_cast<long long>(sums[2]));
    std::fflush(stdout);
  }
}

// Reads all layers: hash of the state, and the planes over those in `file`, a copy of the artifact.
std::string ReadBack(Program& program, const fmpq_artifact& artifact, std::vector<uint8_t>* file) {
  fmpq_sha256 sha;
  uint8_t digest[32];
  char hex[65];
  fmpq_sha256_init(&sha);
  for (uint32_t i = 0; i < artifact.n_layers; i++) {
    const std::vector<int64_t> layer = {i};
    const std::vector<uint8_t>& section = program.Run("read_planes", {runner::Words(layer)});
    const fmpq_artifact_layer& entry = artifact.layer[i];
    const size_t planes = (1u + section[8] + section[9]) * entry.plane_bytes;
    const uint8_t* data = section.data() + 40;
    fmpq_sha256_add(&sha, data, planes + Get32(section.data() + 28));
    std::memcpy(file->data() + entry.planes, data, planes);
    std::memcpy(file->data() + entry.params, data + planes, entry.params_bytes);
  }
  fmpq_sha256_end(&sha, digest);
  fmpq_hex(digest, 32, hex);
  return hex;
}

int Run(const Options& o) {
  Program program(o.program, o.limit);
  std::vector<uint8_t> file = program.Artifact();
  const std::vector<uint8_t> original = file;
  static fmpq_artifact artifact;
  int error = fmpq_artifact_open(original.data(), original.size(), &artifact);
  if (error) throw Problem(5, o.program + ": " + fmpq_port_error_text(error));
  const std::vector<uint8_t> data = ReadFile(o.shard);
  fmpq_shard shard;
  error = fmpq_shard_open(data.data(), data.size(), &shard);
  if (!error) error = fmpq_shard_fits(&shard, &artifact.parsed);
  if (error) throw Problem(4, o.shard + ": " + fmpq_port_error_text(error));

  Train(program, artifact, shard, o);
  const std::string state = ReadBack(program, artifact, &file);
  if (!o.out.empty()) {
    fmpq_artifact_seal(&artifact, file.data());
    std::ofstream out(o.out, std::ios::binary);
    out.write(reinterpret_cast<const char*>(file.data()), static_cast<std::streamsize>(file.size()));
    if (!out.flush()) throw Problem(1, o.out + " cannot be written");
  }
  const std::vector<int64_t> question(10 + artifact.n_layers);
  const int64_t* figures = program.Numbers("plan", {runner::Words(question)});
  std::printf("{\"state\":\"%s\",\"arena_bytes\":%lld,\"other_bytes\":%lld,\"limit_bytes\":%lld}\n", state.c_str(),
              static_cast<long long>(figures[0]), static_cast<long long>(figures[1]), static_cast<long long>(figures[2]));
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2 || !std::strcmp(argv[1], "--help")) {
    std::fputs(kUsage, argc < 2 ? stderr : stdout);
    return argc < 2 ? 2 : 0;
  }
  try {
    return Run(Parse(argc, argv));
  } catch (const Problem& problem) {
    std::fprintf(stderr, "fedmpq_runner: error: %s\n", problem.what());
    return problem.exit_code;
  }
}
