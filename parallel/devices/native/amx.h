// The tiles of AMX: whether this process may use them, and their shapes.
//
// A product of tiles sums 16 words of bf16 pairs for each element, in an order of its own, whatever
// rows and columns are beside it. Where the compiler's target has no AMX, nothing is `usable`.
#pragma once

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstdint>

namespace tessera::amx {

constexpr int64_t kRows = 16;   // of a tile
constexpr int64_t kWords = 16;  // of a row: 64 bytes

#ifdef __AMX_BF16__

inline std::atomic<bool> refused = false;

// Linux lends the tiles' state to a process that asks for it.
inline bool usable() {
  constexpr long kRequest = 0x1023, kTileData = 18;
  static const bool granted = syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
  return granted && !refused;
}

// Whether `usable` may be true; says whether it is.
inline bool use(bool wanted) {
  refused = !wanted;
  return usable();
}

struct alignas(64) Shapes {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};
};

// Rows of each tile; 0: not used. All have 64 bytes a row.
using Rows = std::array<int64_t, 8>;

// Tiles of such shapes, in this thread, while this lives.
class Tiles {
 public:
  explicit Tiles(const Rows& rows) {
    Shapes shapes;
    for (int i = 0; i < 8; ++i) {
      shapes.rows[i] = static_cast<uint8_t>(rows[i]);
      shapes.bytes[i] = rows[i] > 0 ? 4 * kWords : 0;
    }
    asm volatile("ldtilecfg %0" : : "m"(shapes) : "memory");
  }
  ~Tiles() { _tile_release(); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
};

// Between what is written by other instructions and what tiles read of it.
inline void written() { asm volatile("" ::: "memory"); }

#else

inline bool usable() { return false; }
inline bool use(bool) { return false; }

#endif

}  // namespace tessera::amx
