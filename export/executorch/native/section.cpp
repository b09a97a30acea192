#include "section.h"

#include <algorithm>

namespace fedmpq {
namespace {

uint32_t Get32(const uint8_t* p) {
  return p[0] | static_cast<uint32_t>(p[1]) << 8 | static_cast<uint32_t>(p[2]) << 16 | static_cast<uint32_t>(p[3]) << 24;
}

void Put32(uint8_t* p, uint32_t value) {
  for (int i = 0; i < 4; i++) p[i] = static_cast<uint8_t>(value >> 8 * i);
}

bool AllZero(const uint8_t* begin, const uint8_t* end) {
  return std::all_of(begin, end, [](uint8_t byte) { return byte == 0; });
}

}  // namespace

const char* ParseSection(const uint8_t* data, size_t size, Section* out) {
  if (size < kSectionHead) return "the weights section ends before its table";
  if (Get32(data) != 1 || Get32(data + 4)) return "the weights section does not hold exactly one layer";
  const uint8_t* entry = data + 8;
  out->bits = entry[0];
  out->guard = entry[1];
  out->theta = Get32(entry + 4);
  out->step = {Get32(entry + 8), static_cast<int32_t>(Get32(entry + 12))};
  out->params_bytes = Get32(entry + 20);
  out->data = const_cast<uint8_t*>(data);  // read only, through the accessors
  const bool ranges = out->bits >= 1 && out->bits <= 8 && out->guard <= 8 && out->theta > 0;
  if (!ranges || entry[2] || entry[3] || Get32(entry + 16) != kSectionHead || !AllZero(entry + 24, entry + 32)) {
    return "the weights section's table is damaged";
  }
  if (out->bytes() > size) return "the weights section ends early";
  if (!AllZero(data + out->bytes(), data + size)) return "the weights section has bytes after its layer";
  return nullptr;
}

void WriteHead(const Section& section) {
  uint8_t* data = section.data;
  std::fill(data, data + kSectionHead, uint8_t{0});
  Put32(data, 1);
  uint8_t* entry = data + 8;
  entry[0] = static_cast<uint8_t>(section.bits);
  entry[1] = static_cast<uint8_t>(section.guard);
  Put32(entry + 4, section.theta);
  Put32(entry + 8, section.step.m);
  Put32(entry + 12, static_cast<uint32_t>(section.step.e));
  Put32(entry + 16, kSectionHead);
  Put32(entry + 20, static_cast<uint32_t>(section.params_bytes));
}

}  // namespace fedmpq
