// Launching a kernel, and what the current device offers. No header of torch: the library is built
// without one, and shares the device's primary context with it.
#pragma once

#include "numbers.cuh"

#ifndef LEANMOE_HOST
namespace packed {

struct Device {
    int multiprocessors, shared_of_block, shared_of_all;

    // As many blocks as run at a time, up to `most` on each multiprocessor.
    int blocks(int shared, int most) const {
        const int fit = shared_of_all / (shared + 1024);
        return multiprocessors * (fit < 1 ? 1 : fit < most ? fit : most);
    }
};

inline Device device_now() {
    static Device known[64];
    int id = 0;
    cudaGetDevice(&id);
    Device& found = known[id & 63];
    if (!found.multiprocessors) {
        cudaDeviceGetAttribute(&found.shared_of_block, cudaDevAttrMaxSharedMemoryPerBlockOptin, id);
        cudaDeviceGetAttribute(&found.shared_of_all, cudaDevAttrMaxSharedMemoryPerMultiprocessor, id);
        cudaDeviceGetAttribute(&found.multiprocessors, cudaDevAttrMultiProcessorCount, id);
    }
    return found;
}

template <class Arguments>
int launch(void (*kernel)(Arguments), int blocks, int threads, int shared, const Arguments& arguments,
           void* stream) {
    const void* function = (const void*)kernel;
    if (shared > 48 << 10)
        if (auto error = cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, shared))
            return error;
    void* parameters[] = {(void*)&arguments};
    return cudaLaunchKernel(function, dim3(blocks), dim3(threads), parameters, shared, (cudaStream_t)stream);
}

inline const char* error_text(int error) {
    return error < 0 ? "a size that was not built" : cudaGetErrorString((cudaError_t)error);
}

}  // namespace packed
#endif
