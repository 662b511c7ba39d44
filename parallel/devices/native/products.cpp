// Products of bf16 with a packed weight.
#include "common.h"

namespace tessera {
namespace {

int64_t panel_columns() { return 32; }

}  // namespace
}  // namespace tessera

TORCH_LIBRARY_FRAGMENT(tessera_native, library) {
  library.def("panel_columns() -> int", tessera::panel_columns);
}
