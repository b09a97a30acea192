// A weights section (docs/artifact.md) of one layer: what load_planes takes and read_planes gives.
#ifndef FEDMPQ_EXECUTORCH_SECTION_H
#define FEDMPQ_EXECUTORCH_SECTION_H

#include <cstddef>
#include <cstdint>

extern "C" {
#include <fmpq/fmpq.h>
}

namespace fedmpq {

constexpr size_t kSectionHead = 40;  // layer count, reserved, one entry of the table

struct Section {
  uint32_t bits = 0, guard = 0, theta = 0;
  fmpq_fx step = {0, 0};
  size_t params_bytes = 0;
  uint8_t* data = nullptr;

  uint32_t planes() const { return 1 + bits + guard; }
  size_t plane_bytes() const { return (theta + size_t{7}) / 8; }
  uint8_t* plane(uint32_t k) const { return data + kSectionHead + k * plane_bytes(); }
  uint8_t* params() const { return data + kSectionHead + planes() * plane_bytes(); }
  size_t bytes() const { return kSectionHead + planes() * plane_bytes() + params_bytes; }
};

// Reads and checks the head; nullptr, or what is wrong. The data may be longer than the section: zeros follow it.
const char* ParseSection(const uint8_t* data, size_t size, Section* out);
void WriteHead(const Section& section);

}  // namespace fedmpq
#endif
