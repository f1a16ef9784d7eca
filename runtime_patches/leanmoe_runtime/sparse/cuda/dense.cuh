// Packed matrices written out dense, as vLLM's kernels read them: for steps of many tokens an expert,
// which arithmetic bounds. A warp expands a unit at a time; inputs that an expert orders in its own
// way go back to the places of the source, since all experts multiply the same tokens.
#pragma once

#include "pairs.cuh"

namespace packed {

constexpr int DENSE_THREADS = 256;
constexpr int DENSE_SHARED = DENSE_THREADS / 32 * GROUP / 2 * 32 * 4;

struct Writing {
    Matrix matrix;
    const int32_t* orders;  // [E, columns] or null
    uint16_t* out;          // [count, rows, columns]
    int32_t first, count;   // experts
    int32_t joined;         // even rows are of the first half
    int32_t is_half;        // float16, else bfloat16: what codes are written as
};

DEVICE uint16_t* dense_row(const Writing& a, int expert, int row) {
    const int at = a.joined ? row % 2 * (a.matrix.rows / 2) + row / 2 : row;
    return a.out + ((int64_t)(expert - a.first) * a.matrix.rows + at) * a.matrix.columns;
}

// Numbers of two columns a word, from `column` on.
template <int WORDS>
DEVICE void write(const Writing& a, int expert, int row, int column, const u32 (&words)[WORDS]) {
    uint16_t* to = dense_row(a, expert, row);
    if (a.orders) {
        const int32_t* order = a.orders + (int64_t)expert * a.matrix.columns + column;
#pragma unroll
        for (int w = 0; w < WORDS; w++) {
            to[order[2 * w]] = (uint16_t)words[w];
            to[order[2 * w + 1]] = (uint16_t)(words[w] >> 16);
        }
        return;
    }
#pragma unroll
    for (int w = 0; w < WORDS; w += 2) *(uint2*)(to + column + 2 * w) = uint2{words[w], words[w + 1]};
}

template <class Number, int KEEP>
DEVICE void write_unit(const Writing& a, int expert, int unit, int lane, u32* own) {
    const Matrix& m = a.matrix;
    const int64_t u = expert * m.units() + unit;
    const int rows = 1 << m.row_bits();
    Vector<Number> values[KEEP / 8];
#pragma unroll
    for (int v = 0; v < KEEP / 8; v++)
        values[v] = read_vector<Number>(m, (u * (KEEP / 8) + v) * 32 + lane);
    const int row = unit / m.across * rows, first = unit % m.across * m.lanes;
    const auto scale = [&](int of) {
        return scale_of<Number>(m, expert, row + m.row_of(of), (first + m.group_of(of)) * GROUP);
    };
#pragma unroll
    for (int w = 0; w < GROUP / 2; w++) own[w * 32] = 0;
    scatter<Number, KEEP>(m, values, stream(m.mask + u * 32 + lane), scale(lane), own, 32);
    __syncwarp();
    if (m.starts)
        for (int i = m.starts[u * rows] + lane; i < m.starts[(u + 1) * rows]; i += 32) {
            const u32 entry = m.entries[i];
            put_half<Number>(m, own - lane + (entry & 31), 32, entry, scale(entry & 31));
        }
    __syncwarp();
    const int column = (first + m.group_of(lane)) * GROUP;
    if (column >= m.columns) return;
    u32 words[GROUP / 2];
#pragma unroll
    for (int w = 0; w < GROUP / 2; w++) words[w] = own[w * 32];
    write<GROUP / 2>(a, expert, row + m.row_of(lane), column, words);
}

template <class Number, int KEEP>
DEVICE void write_dense(const Writing& a) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    const int64_t units = a.matrix.units(), count = units * a.count;
    u32* own = (u32*)SHARED + warp * GROUP / 2 * 32 + lane;
    for (int64_t i = (int64_t)blockIdx.x * warps + warp; i < count; i += (int64_t)gridDim.x * warps) {
        write_unit<Number, KEEP>(a, a.first + (int)(i / units), (int)(i % units), lane, own);
        __syncwarp();
    }
}

// Of 2:4: the four columns of a group, by the places of its two values.
DEVICE void write_four(const Writing& a, int expert, int row, int column, u32 pair, u32 places) {
    u32 words[2] = {0, 0};
    const u32 first = places & 3, second = places >> 2 & 3;
    words[first >> 1] |= (pair & 0xffff) << (first & 1) * 16;
    words[second >> 1] |= (pair >> 16) << (second & 1) * 16;
    if (column < a.matrix.columns) write<2>(a, expert, row, column, words);
}

template <class Number>
DEVICE void write_pairs(const Writing& a) {
    const Matrix& m = a.matrix;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    const int64_t units = m.units(), count = units * a.count;
    for (int64_t i = (int64_t)blockIdx.x * warps + warp; i < count; i += (int64_t)gridDim.x * warps) {
        const int expert = a.first + (int)(i / units), unit = (int)(i % units);
        const int64_t u = expert * units + unit;
        const u32 meta = stream(m.mask + u * 32 + lane);
        const int t = lane % 4, row = unit / m.across * TILE_ROWS + lane / 4;
        for (int step = 0; step < 2; step++) {
            const int first = unit % m.across * UNIT_COLUMNS + step * STEP;
            const uint4 v = fragment<Number>(read_vector<Number>(m, (u * 2 + step) * 32 + lane), m,
                                             expert, row, first);
            // Lane 2 step + c of the quad holds the places of groups 4c to 4c + 3 of the fragment.
            const u32 low = __shfl_sync(~0u, meta, (lane & ~3) + 2 * step);
            const u32 high = __shfl_sync(~0u, meta, (lane & ~3) + 2 * step + 1);
            const int column = first + (4 * (t % 2) + t / 2) * 4;
            write_four(a, expert, row, column, v.x, low >> 4 * t);
            write_four(a, expert, row + 8, column, v.y, low >> (16 + 4 * t));
            write_four(a, expert, row, column + 8, v.z, high >> 4 * t);
            write_four(a, expert, row + 8, column + 8, v.w, high >> (16 + 4 * t));
        }
    }
}

}  // namespace packed
