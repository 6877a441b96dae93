// The caller's CUDA stream and device, with no link-time need of CUDA torch.
#pragma once

#include <cstdint>

namespace tokenflow {

// torch's current stream on this device, as a cudaStream_t. Throws where torch has no
// CUDA loaded (a CUDA tensor cannot exist there).
void* current_cuda_stream(int32_t device_index);

}  // namespace tokenflow
