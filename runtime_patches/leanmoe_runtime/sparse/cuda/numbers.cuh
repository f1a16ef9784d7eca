// Numbers of two bytes and the instructions of the processor, each spelled out once: as PTX for a
// GPU from sm_80 on, and by the tests' cuda_host.h, which runs the same kernels on a CPU.
#pragma once

#ifdef LEANMOE_HOST
#include "cuda_host.h"
#else
#include <cuda_runtime.h>
#include <stdint.h>

#define DEVICE __device__ __forceinline__
#define KERNEL(threads, blocks) __global__ void __launch_bounds__(threads, blocks)
#define CONSTANT __grid_constant__ const

extern __shared__ uint4 shared_words[];
#define SHARED ((uint8_t*)shared_words)

typedef uint32_t u32;

namespace packed {

DEVICE u32 top_bit(u32 mask) {
    u32 place;
    asm("bfind.u32 %0, %1;" : "=r"(place) : "r"(mask));
    return place;  // ~0 of an empty mask
}
DEVICE u32 bit(u32 place) {
    u32 mask;
    asm("shl.b32 %0, 1, %1;" : "=r"(mask) : "r"(place));
    return mask;  // 0 past 31
}
// Weights are read once: they are to displace nothing.
DEVICE uint4 stream(const uint4* from) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(from));
    return v;
}
DEVICE uint2 stream(const uint2* from) {
    uint2 v;
    asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0,%1}, [%2];"
                 : "=r"(v.x), "=r"(v.y)
                 : "l"(from));
    return v;
}
DEVICE u32 stream(const u32* from) {
    u32 v;
    asm volatile("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(v) : "l"(from));
    return v;
}
DEVICE float as_float(u32 bits) { return __uint_as_float(bits); }
DEVICE u32 as_bits(float value) { return __float_as_uint(value); }

#define LEANMOE_MMA(TYPE)                                                                        \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." TYPE "." TYPE                          \
                 ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"                    \
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                \
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1))
#define LEANMOE_MMA_SP(TYPE)                                                                     \
    asm volatile("mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32." TYPE "." TYPE     \
                 ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9,%10,%11}, {%0,%1,%2,%3}, %12, %13;"  \
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                \
                 : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b.x), "r"(b.y), "r"(b.z),         \
                   "r"(b.w), "r"(places), "n"(HALF))

struct Bfloat16 {
    static DEVICE float low(u32 pair) { return as_float(pair << 16); }
    static DEVICE float high(u32 pair) { return as_float(pair & 0xffff0000u); }
    static DEVICE uint16_t round(float value) {
        const u32 bits = as_bits(value);
        return value != value ? 0x7fff : (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    }
    static DEVICE void mma(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
        LEANMOE_MMA("bf16");
    }
    template <int HALF>
    static DEVICE void mma_sparse(float (&d)[4], uint4 a, uint4 b, u32 places) {
        LEANMOE_MMA_SP("bf16");
    }
};

struct Float16 {
    static DEVICE float low(u32 pair) {
        float found;
        asm("cvt.f32.f16 %0, %1;" : "=f"(found) : "h"((uint16_t)pair));
        return found;
    }
    static DEVICE float high(u32 pair) { return low(pair >> 16); }
    static DEVICE uint16_t round(float value) {
        uint16_t found;
        asm("cvt.rn.f16.f32 %0, %1;" : "=h"(found) : "f"(value));
        return found;
    }
    static DEVICE void mma(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
        LEANMOE_MMA("f16");
    }
    template <int HALF>
    static DEVICE void mma_sparse(float (&d)[4], uint4 a, uint4 b, u32 places) {
        LEANMOE_MMA_SP("f16");
    }
};

}  // namespace packed
#endif

namespace packed {

DEVICE u32 word_of(const uint4& v, int i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; }
DEVICE uint4 zeros() { return uint4{0, 0, 0, 0}; }

enum Activation { SILU, GELU, GELU_TANH };

DEVICE float activate(int activation, float x) {
    if (activation == SILU) return x / (1.0f + expf(-x));
    if (activation == GELU) return 0.5f * x * (1.0f + erff(x * 0.70710678f));
    return 0.5f * x * (1.0f + tanhf(0.79788456f * (x + 0.044715f * x * x * x)));
}

}  // namespace packed
