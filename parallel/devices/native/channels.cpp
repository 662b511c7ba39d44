// Arrays from one rank of a host to another, through memory that both have mapped.
//
// A segment has a ring of slots for each rank, which one other rank fills. Its two flags count the
// slots that were ever filled and emptied: the sender waits only when the ring is full, and goes on
// to its next batch while the receiver is still at its last.
#include "common.h"
#include "flags.h"

#include <cstring>

namespace tessera {
namespace {

constexpr uint32_t kSlots = 32;

// A ring begins with a line for each of: slots filled, slots emptied, and 1 + the place of who fills
// it, once it did.
constexpr int64_t kHead = 3 * kLine;

class Channel {
 public:
  Channel(const at::Tensor& memory, int64_t receiver, int64_t ranks) {
    TORCH_CHECK(memory.scalar_type() == at::kByte && memory.is_contiguous() && ranks > 1 &&
                    receiver >= 0 && receiver < ranks,
                "a segment is bytes, and the rank one of several");
    const int64_t share = memory.numel() / ranks / kLine * kLine;
    slot_ = (share - kHead) / kSlots / kLine * kLine;
    TORCH_CHECK(slot_ > 0, "a segment of ", memory.numel(), " bytes is too small");
    base_ = static_cast<char*>(memory.data_ptr()) + receiver * share;
  }

  void fed_by(int64_t sender) {
    auto& feeder = *reinterpret_cast<std::atomic<uint32_t>*>(base_ + 2 * kLine);
    uint32_t found = 0;
    const uint32_t own = static_cast<uint32_t>(sender) + 1;
    TORCH_CHECK(feeder.compare_exchange_strong(found, own) || found == own,
                "a rank is fed by one other: by place ", found - 1, ", not ", sender);
  }

  void send(const char* from, int64_t bytes) {
    for (int64_t at = 0; at < bytes; at += slot_) {
      const uint32_t number = filled().value();
      emptied().wait(number + 1 - kSlots);
      std::memcpy(slot(number), from + at, std::min(slot_, bytes - at));
      filled().raise(number + 1);
    }
  }

  void receive(char* to, int64_t bytes) {
    for (int64_t at = 0; at < bytes; at += slot_) {
      const uint32_t number = emptied().value();
      filled().wait(number + 1);
      std::memcpy(to + at, slot(number), std::min(slot_, bytes - at));
      emptied().raise(number + 1);
    }
  }

 private:
  Flag& filled() { return *reinterpret_cast<Flag*>(base_); }
  Flag& emptied() { return *reinterpret_cast<Flag*>(base_ + kLine); }
  char* slot(uint32_t number) { return base_ + kHead + number % kSlots * slot_; }

  char* base_;
  int64_t slot_ = 0;
};

void send(const at::Tensor& x, const at::Tensor& memory, int64_t index, int64_t to,
          int64_t ranks) {
  TORCH_CHECK(x.is_contiguous() && index != to, "what is sent is contiguous, and goes elsewhere");
  Channel channel(memory, to, ranks);
  channel.fed_by(index);
  channel.send(static_cast<const char*>(x.data_ptr()), x.nbytes());
}

void receive(const at::Tensor& x, const at::Tensor& memory, int64_t index, int64_t ranks) {
  TORCH_CHECK(x.is_contiguous(), "what is received is contiguous");
  Channel(memory, index, ranks).receive(static_cast<char*>(x.data_ptr()), x.nbytes());
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(tessera_native, library) {
  library.def("send(Tensor x, Tensor(a!) segment, int index, int to, int ranks) -> ()");
  library.def("receive_(Tensor(a!) x, Tensor(b!) segment, int index, int ranks) -> ()");
}

TORCH_LIBRARY_IMPL(tessera_native, CPU, library) {
  library.impl("send", send);
  library.impl("receive_", receive);
}

}  // namespace tessera
