// Flags in memory that several processes have mapped: raised by one, awaited by others.
#pragma once

#include <immintrin.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <climits>
#include <cstdint>
#include <ctime>

namespace tessera {

constexpr int64_t kLine = 128;  // two cache lines: neighbours are prefetched in pairs
constexpr int kSpins = 4000;    // looks at a flag, some 0.1 ms, before the core is given away

// Counts on, and over: of two values that are near each other the later one is known.
struct Flag {
  std::atomic<uint32_t> reached;
  std::atomic<uint32_t> sleepers;

  uint32_t value() const { return reached.load(std::memory_order_relaxed); }

  bool has(uint32_t wanted) const {
    return static_cast<int32_t>(reached.load(std::memory_order_acquire) - wanted) >= 0;
  }

  void raise(uint32_t to) {
    reached.store(to);
    if (sleepers.load() > 0) {
      syscall(SYS_futex, &reached, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
    }
  }

  void wait(uint32_t wanted) {
    for (int i = 0; i < kSpins; ++i) {
      if (has(wanted)) return;
      _mm_pause();
    }
    sleepers.fetch_add(1);
    // Not for ever: a wake-up that a killed rank still owed is never sent.
    const timespec most{0, 100'000'000};
    for (uint32_t seen = reached.load(); static_cast<int32_t>(seen - wanted) < 0;
         seen = reached.load()) {
      syscall(SYS_futex, &reached, FUTEX_WAIT, seen, &most, nullptr, 0);
    }
    sleepers.fetch_sub(1);
  }
};
static_assert(sizeof(Flag) <= kLine && std::atomic<uint32_t>::is_always_lock_free);

}  // namespace tessera
