// 2:4 on the sparse tensor cores, up to 16 tokens an expert. A unit is 16 rows of 64 columns in the
// order of the fragments of mma.sp (PTX ISA, m16n8k32): lane (g, t) has of both steps of 32 columns
// the two values of groups 4 (t % 2) + t / 2 and two after it, rows g and g + 8. A lane reads eight
// columns of x at a time; neighbours swap halves, so that each has two columns of four groups, which
// fixes the order of the groups.
#pragma once

#include "tensor.cuh"

namespace packed {

constexpr int STEP = 32;         // columns of an instruction
constexpr int UNIT_COLUMNS = 64;
constexpr int BATCH = 3;         // units that are in flight at a time

template <class Number>
struct Batch {
    Vector<Number> values[BATCH][2];
    u32 places[BATCH];
};

template <class Number>
DEVICE void fetch(Batch<Number>& b, const Matrix& m, int64_t base, int unit, int lane) {
#pragma unroll
    for (int k = 0; k < BATCH; k++) {
        if (unit + k >= m.across) return;
        const int64_t u = base + unit + k;
        b.values[k][0] = read_vector<Number>(m, u * 64 + lane);
        b.values[k][1] = read_vector<Number>(m, u * 64 + 32 + lane);
        b.places[k] = stream(m.mask + u * 32 + lane);
    }
}

DEVICE uint4 swap_halves(const uint4& x, int lane) {
    const bool odd = lane & 1;
    const u32 first = __shfl_xor_sync(~0u, odd ? x.x : x.y, 1);
    const u32 second = __shfl_xor_sync(~0u, odd ? x.z : x.w, 1);
    return odd ? uint4{first, second, x.y, x.w} : uint4{x.x, x.z, first, second};
}

// The pairs of a step's vector as numbers; rows lie 8 apart.
template <class Number>
DEVICE uint4 fragment(const Vector<Number>& v, const Matrix& m, int expert, int row, int column) {
    const auto even = scale_of<Number>(m, expert, row, column);
    const auto odd = scale_of<Number>(m, expert, row + 8, column);
    return pairs_of<Number>(v, even.all, odd.all);
}

template <class Number, int TOKEN_TILES>
DEVICE void multiply_batch(const Batch<Number>& b, const Matrix& m, const Tokens<TOKEN_TILES>& tokens,
                           int expert, int row, int unit, int lane,
                           float (&sums)[TOKEN_TILES][4]) {
#pragma unroll
    for (int k = 0; k < BATCH; k++) {
        if (unit + k >= m.across) return;
        const int first = (unit + k) * UNIT_COLUMNS, column = first + lane % 4 * 8;
        const uint4 a0 = fragment<Number>(b.values[k][0], m, expert, row, first);
        const uint4 a1 = fragment<Number>(b.values[k][1], m, expert, row, first + STEP);
#pragma unroll
        for (int n = 0; n < TOKEN_TILES; n++) {
            const uint4 x0 = swap_halves(tokens.eight(n, column, m.columns), lane);
            Number::template mma_sparse<0>(sums[n], a0, x0, b.places[k]);
            const uint4 x1 = swap_halves(tokens.eight(n, column + STEP, m.columns), lane);
            Number::template mma_sparse<1>(sums[n], a1, x1, b.places[k]);
        }
    }
}

template <class Number, int TOKEN_TILES>
DEVICE void tensor_pairs(const Product& a) {
    const Items items = items_of(a, (int32_t*)SHARED);
    const Matrix& m = a.matrix;
    float* parts = (float*)(SHARED + a.shared_x);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, tiles = m.rows / TILE_ROWS;
    const int works = items.count * tiles;
    Tokens<TOKEN_TILES> tokens;
    for (int work = blockIdx.x; work < works; work += gridDim.x) {
        const int item = work / tiles, tile = work - item * tiles;
        const int32_t* pairs = items.pairs + item * items.per_item;
        const int expert = items.experts[item];
        const int64_t base = expert * m.units() + (int64_t)tile * m.across;
        const int row = tile * TILE_ROWS + lane / 4;
        tokens.find(a, pairs, lane);
        float sums[TOKEN_TILES][4];
#pragma unroll
        for (int i = 0; i < TOKEN_TILES * 4; i++) sums[i / 4][i % 4] = 0;
        Batch<Number> now, next;
        fetch(now, m, base, warp * BATCH, lane);
        for (int unit = warp * BATCH; unit < m.across; unit += TENSOR_WARPS * BATCH) {
            fetch(next, m, base, unit + TENSOR_WARPS * BATCH, lane);
            multiply_batch<Number, TOKEN_TILES>(now, m, tokens, expert, row, unit, lane, sums);
            now = next;
        }
        __syncthreads();  // the tile before has been read
        leave<TOKEN_TILES>(parts, warp, lane, sums);
        __syncthreads();
        put_tile<Number, TOKEN_TILES>(a, pairs, tile, parts);
    }
}

}  // namespace packed
