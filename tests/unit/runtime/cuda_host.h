// Runs the CUDA kernels of packed experts on a CPU: a fibre for each thread of a block, real
// barriers, the tensor cores' fragments spelled out as the PTX ISA lays them out. Blocks run one
// after the other, so that races between blocks stay unseen; reads and writes outside of shared
// memory are the address sanitizer's to find.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#define DEVICE inline
#define KERNEL(threads, blocks) inline void
#define CONSTANT const
#define __syncwarp() host::warp().wait(32)
#define __syncthreads() host::block().wait(blockDim.x)

typedef uint32_t u32;
struct uint2 {
    u32 x, y;
};
struct alignas(16) uint4 {
    u32 x, y, z, w;
};
struct int4 {
    int32_t x, y, z, w;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct Dim {
    int x;
};
inline Dim threadIdx, blockIdx, blockDim, gridDim;

namespace host {

struct Fibre {
    ucontext_t context;
    std::vector<char> stack;
    bool done;
};
inline std::vector<Fibre> fibres;
inline ucontext_t scheduler;
inline int running;

inline std::vector<int> ready;

inline void give_way() { swapcontext(&fibres[running].context, &scheduler); }

struct Barrier {
    std::vector<int> waiting;

    void wait(int all) {
        if (static_cast<int>(waiting.size()) + 1 < all) {
            waiting.push_back(running);
            return give_way();
        }
        ready.insert(ready.end(), waiting.begin(), waiting.end());
        waiting.clear();
    }
};
inline Barrier of_block;
inline std::vector<Barrier> of_warps;
inline Barrier& block() { return of_block; }
inline Barrier& warp() { return of_warps[running / 32]; }

// What the lanes of a warp show each other, in two places in turn: who has passed a barrier may show
// the next while others still look at the last.
inline u32 shown[2][32][32][16];
inline int turns[1024];
inline u32 (*show(const void* words, int bytes))[16] {
    auto* all = shown[turns[running]++ % 2][running / 32];
    std::memcpy(all[running % 32], words, bytes);
    warp().wait(32);
    return all;
}
template <class Value>
Value exchange(Value value, int from) {
    Value found;
    std::memcpy(&found, show(&value, 4)[from & 31], 4);
    return found;
}

inline uint8_t* shared = nullptr;
inline int multiprocessors = 2, shared_of_block = 227 << 10;
inline int64_t launches = 0;

inline void (*body)(const void*, void (*)());
inline const void* arguments;
inline void (*kernel)();
inline void enter() {
    body(arguments, kernel);
    fibres[running].done = true;
    for (;;) give_way();
}

inline void run_block(int threads, int bytes) {
    // Of exactly this size, so that the sanitizer sees what lies outside; filled with no number.
    shared = static_cast<uint8_t*>(std::aligned_alloc(16, (bytes + 15) / 16 * 16 + 16));
    std::memset(shared, 0xff, bytes);
    of_block = Barrier();
    of_warps.assign(threads / 32, Barrier());
    ready.clear();
    for (auto& one : fibres) {
        ready.push_back(static_cast<int>(ready.size()));
        one.stack.resize(1 << 16);
        one.done = false;
        getcontext(&one.context);
        one.context.uc_stack.ss_sp = one.stack.data();
        one.context.uc_stack.ss_size = one.stack.size();
        one.context.uc_link = nullptr;
        makecontext(&one.context, enter, 0);
    }
    for (size_t next = 0; next < ready.size(); next++) {
        running = threadIdx.x = ready[next];
        swapcontext(&scheduler, &fibres[running].context);
        if (next > 1 << 16) ready.erase(ready.begin(), ready.begin() + next), next = 0;
    }
    for (auto& one : fibres)
        if (!one.done) std::abort();  // threads that wait for others that never come
    std::free(shared);
}

}  // namespace host

#define SHARED host::shared

template <class Value>
Value __shfl_xor_sync(u32, Value value, int distance) {
    return host::exchange(value, (host::running % 32) ^ distance);
}
template <class Value>
Value __shfl_up_sync(u32, Value value, int distance) {
    const int lane = host::running % 32;
    return host::exchange(value, lane >= distance ? lane - distance : lane);
}
template <class Value>
Value __shfl_sync(u32, Value value, int from) {
    return host::exchange(value, from);
}
inline int atomicAdd(int32_t* place, int value) {
    const int before = *place;
    *place += value;
    return before;
}

namespace packed {

inline u32 top_bit(u32 mask) { return mask ? 31 - __builtin_clz(mask) : ~0u; }
inline u32 bit(u32 place) { return place < 32 ? 1u << place : 0; }
template <class Value>
Value stream(const Value* from) {
    return *from;
}
inline float as_float(u32 bits) {
    float found;
    std::memcpy(&found, &bits, 4);
    return found;
}
inline u32 as_bits(float value) {
    u32 found;
    std::memcpy(&found, &value, 4);
    return found;
}

// m16n8k16: lane (g, t) has of a rows g and g + 8 at k 2t and 2t + 8, of b column g at the same k, of
// d rows g and g + 8 at columns 2t.
template <class Number>
void host_mma(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    const int lane = host::running % 32;
    const u32 words[] = {a[0], a[1], a[2], a[3], b[0], b[1]};
    const auto* all = host::show(words, sizeof words);
    const auto half = [](u32 word, int h) { return h ? Number::high(word) : Number::low(word); };
    for (int c = 0; c < 4; c++) {
        const int row = lane / 4 + c / 2 * 8, column = lane % 4 * 2 + c % 2;
        for (int k = 0; k < 16; k++) {
            const u32 left = all[row % 8 * 4 + k % 8 / 2][row / 8 + k / 8 * 2];
            const u32 right = all[column * 4 + k % 8 / 2][4 + k / 8];
            d[c] += half(left, k % 2) * half(right, k % 2);
        }
    }
}

// mma.sp m16n8k32: a0, a1 are the two values of group t (columns 4t to 4t + 3) of rows g, g + 8; a2, a3
// those of group t + 4. Lane 2 HALF + c of a quad has the places of groups 4c to 4c + 3: row g in the
// lower half of the word, row g + 8 in the upper. b_j: k 8j + 2t and the next, column g.
template <class Number, int HALF>
void host_mma_sparse(float (&d)[4], uint4 a, uint4 b, u32 places) {
    const int lane = host::running % 32;
    const u32 words[] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w, places};
    const auto* all = host::show(words, sizeof words);
    const auto half = [](u32 word, int h) { return h ? Number::high(word) : Number::low(word); };
    for (int c = 0; c < 4; c++) {
        const int row = lane / 4 + c / 2 * 8, column = lane % 4 * 2 + c % 2;
        for (int kept = 0; kept < 16; kept++) {
            const int group = kept / 2;
            const u32 values = all[row % 8 * 4 + group % 4][row / 8 + group / 4 * 2];
            const u32 meta = all[row % 8 * 4 + 2 * HALF + group / 4][8];
            const u32 place = meta >> (row / 8 * 16 + group % 4 * 4 + kept % 2 * 2) & 3;
            if (kept % 2 && place <= (meta >> (row / 8 * 16 + group % 4 * 4) & 3)) std::abort();
            const int k = group * 4 + place;
            const u32 right = all[column * 4 + k % 8 / 2][4 + k / 8];
            d[c] += half(values, kept % 2) * half(right, k % 2);
        }
    }
}

struct Bfloat16 {
    static float low(u32 pair) { return as_float(pair << 16); }
    static float high(u32 pair) { return as_float(pair & 0xffff0000u); }
    static uint16_t round(float value) {
        const u32 bits = as_bits(value);
        return value != value ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    }
    static void mma(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
        host_mma<Bfloat16>(d, {a0, a1, a2, a3}, {b0, b1});
    }
    template <int HALF>
    static void mma_sparse(float (&d)[4], uint4 a, uint4 b, u32 places) {
        host_mma_sparse<Bfloat16, HALF>(d, a, b, places);
    }
};

struct Float16 {
    static float low(u32 pair) {
        const uint16_t bits = pair;
        _Float16 found;
        std::memcpy(&found, &bits, 2);
        return found;
    }
    static float high(u32 pair) { return low(pair >> 16); }
    static uint16_t round(float value) {
        const _Float16 rounded = value;
        uint16_t found;
        std::memcpy(&found, &rounded, 2);
        return found;
    }
    static void mma(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
        host_mma<Float16>(d, {a0, a1, a2, a3}, {b0, b1});
    }
    template <int HALF>
    static void mma_sparse(float (&d)[4], uint4 a, uint4 b, u32 places) {
        host_mma_sparse<Float16, HALF>(d, a, b, places);
    }
};

struct Device {
    int multiprocessors, shared_of_block, shared_of_all;

    int blocks(int, int) const { return multiprocessors; }
};
inline Device device_now() {
    return {host::multiprocessors, host::shared_of_block, host::shared_of_block};
}

template <class Arguments>
int launch(void (*kernel)(Arguments), int blocks, int threads, int shared, const Arguments& arguments,
           void*) {
    if (shared > host::shared_of_block || threads % 32 || blocks < 1) return 1;
    host::launches++;
    host::kernel = reinterpret_cast<void (*)()>(kernel);
    host::arguments = &arguments;
    host::body = [](const void* given, void (*one)()) {
        reinterpret_cast<void (*)(Arguments)>(one)(*static_cast<const Arguments*>(given));
    };
    blockDim.x = threads;
    gridDim.x = blocks;
    host::fibres.resize(threads);
    for (int b = 0; b < blocks; b++) {
        blockIdx.x = b;
        host::run_block(threads, shared);
    }
    return 0;
}
inline const char* error_text(int) { return "a launch that no device takes"; }

}  // namespace packed

extern "C" int64_t host_launches() { return host::launches; }
extern "C" void host_take(int multiprocessors) { host::multiprocessors = multiprocessors; }
