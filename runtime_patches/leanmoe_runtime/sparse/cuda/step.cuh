// What the kernels are told, and which pairs of token and expert they compute together.
//
// A matrix lies in units of 32 groups of 32 weights, a group a lane. A unit spans R = 32 / lanes rows
// of `lanes` groups each; the units of R rows follow each other along the columns. Of 2:4, a unit is
// 16 rows of 64 columns in the order of the tensor cores' fragments. Rows of gate and up projection
// lie in turn, so that whoever computes one has the other.
#pragma once

#include "numbers.cuh"

namespace packed {

constexpr int GROUP = 32;
constexpr int TILE_ROWS = 16;
// Pairs of token and expert that a block sorts by itself; more are sorted by a launch of their own.
constexpr int FEW_PAIRS = 128;

// What float8 values are multiplied with, a number for each block of the source.
struct Scales {
    const float* numbers;   // [E, halves, row blocks, column blocks]; halves: gate and up, or one
    const int32_t* orders;  // [E, columns] or null: the source's column for each of the matrix's
    int32_t halves, row_blocks, column_blocks;
    int32_t block_rows, column_shift;  // a block has 2^shift columns
    int32_t first_row, first_column;   // where in the first block the matrix begins
    int32_t unused;
};

// One projection of all experts. `keep` values of a group are stored, 0 stands for 2:4.
struct Matrix {
    const void* values;     // [E, units, vectors of 8 values, 32]
    const u32* mask;        // [E, units, 32]: a bit a weight; of 2:4, two bits a value
    const int32_t* starts;  // [E * units * R + 1] or null: where the overflow of a unit's row begins
    const u32* entries;     // value << 16 | place in the group << 5 | lane
    int32_t rows, columns;  // columns without what fills up the last unit
    int32_t keep, lanes;
    int32_t across;  // units that follow each other along a row
    int32_t is_coded;  // values are float8
    Scales scales;

    // Lanes are a power of two, and a division is twenty instructions: indices are shifted.
    DEVICE int lane_bits() const { return (int)top_bit((u32)lanes); }
    DEVICE int row_bits() const { return 5 - lane_bits(); }
    DEVICE int row_of(int lane) const { return lane >> lane_bits(); }
    DEVICE int group_of(int lane) const { return lane & (lanes - 1); }
    DEVICE int64_t units() const { return (int64_t)(keep ? rows >> row_bits() : rows / TILE_ROWS) * across; }
};

// A product of one projection with the rows of its pairs.
struct Product {
    Matrix matrix;
    const uint16_t* x;       // [rows, columns]; pair i multiplies row i / pairs_of_row
    const int32_t* orders;   // [E, columns] or null: the column of x for each of the matrix's
    const float* weights;    // [pairs] or null: what a result is multiplied with
    uint16_t* out;           // [pairs, rows], or half as many rows where gate and up are joined
    const int32_t* ids;      // [pairs]; below 0: no expert
    const int32_t* sorted;   // what `sort` found, null where every block sorts for itself
    int32_t pairs, pairs_of_row, experts;
    int32_t joined;      // 1: even rows are gates of the rows after them
    int32_t activation;
    int32_t per_item;    // pairs that are computed together
    int32_t most_items;
    int32_t shared_x;    // bytes of shared memory before the kernel's own
};

// Pairs by expert, `per_item` at a time: number of items, their experts, their pairs (-1: none).
struct Items {
    const int32_t* experts;
    const int32_t* pairs;
    int32_t count, per_item;
};

DEVICE int ints_of_items(int most_items, int per_item) { return 4 + most_items * (1 + per_item); }

// Every thread takes part, each with a pair; items in the order of their first pairs.
DEVICE void sort_few(const Product& a, int32_t* to) {
    const int i = threadIdx.x, most = a.most_items;
    int32_t* expert_of = to + ints_of_items(most, a.per_item);
    int32_t* leads = expert_of + a.pairs;
    for (int j = i; j < most * a.per_item; j += blockDim.x) to[4 + most + j] = -1;
    int own = -1, rank = 0, leader = i;
    if (i < a.pairs) expert_of[i] = own = (u32)a.ids[i] < (u32)a.experts ? a.ids[i] : -1;
    __syncthreads();
    for (int j = 0; own >= 0 && j < i; j++)
        if (expert_of[j] == own && rank++ % a.per_item == 0) leader = j;
    if (rank % a.per_item == 0) leader = i;
    if (i < a.pairs) leads[i] = own >= 0 && leader == i;
    __syncthreads();
    int item = 0;
    for (int j = 0; i < a.pairs && j < leader; j++) item += leads[j];
    if (own >= 0) {
        if (leader == i) to[4 + item] = own;
        to[4 + most + item * a.per_item + rank % a.per_item] = i;
    }
    if (i == a.pairs - 1) {
        int count = 0;
        for (int j = 0; j < a.pairs; j++) count += leads[j];
        to[0] = count;
    }
    __syncthreads();
}

// The items of a launch: its own, in shared memory, or those that were sorted before it.
DEVICE Items items_of(const Product& a, int32_t* own) {
    const int32_t* found = a.sorted;
    if (!found) {
        sort_few(a, own);
        found = own;
    }
    return {found + 4, found + 4 + a.most_items, found[0], a.per_item};
}

// A launch before the products: pairs by expert, and rows of x in each expert's order of columns.
struct Sorting {
    const int32_t* ids;
    int32_t* sorted;        // ints_of_items
    const uint16_t* x;      // [tokens, columns]
    const int32_t* orders;  // [E, columns] or null
    uint16_t* ordered;      // [pairs, columns]
    int32_t pairs, top_k, experts, columns, per_item, most_items;
};

DEVICE void order_row(const Sorting& a, int pair) {
    const int expert = a.ids[pair];
    if ((u32)expert >= (u32)a.experts) return;
    const uint16_t* from = a.x + (int64_t)(pair / a.top_k) * a.columns;
    const int32_t* order = a.orders + (int64_t)expert * a.columns;
    uint16_t* to = a.ordered + (int64_t)pair * a.columns;
    for (int c = threadIdx.x; c < a.columns; c += blockDim.x) to[c] = from[order[c]];
}

// By counting; the pairs of an expert in any order, which changes no result.
DEVICE void sort_many(const Sorting& a) {
    int32_t* counts = (int32_t*)SHARED;   // [experts], then where the next pair of each goes
    int32_t* first_item = counts + a.experts;
    const int lane = threadIdx.x % 32, experts = a.experts, most = a.most_items;
    int32_t *to = a.sorted, *slots = to + 4 + most;
    for (int e = threadIdx.x; e < experts; e += blockDim.x) counts[e] = 0;
    for (int i = threadIdx.x; i < most * a.per_item; i += blockDim.x) slots[i] = -1;
    __syncthreads();
    for (int i = threadIdx.x; i < a.pairs; i += blockDim.x)
        if ((u32)a.ids[i] < (u32)experts) atomicAdd(&counts[a.ids[i]], 1);
    __syncthreads();
    if (threadIdx.x < 32) {
        const int each = (experts + 31) / 32, begin = lane * each;
        int items = 0;
        for (int e = begin; e < begin + each && e < experts; e++)
            items += (counts[e] + a.per_item - 1) / a.per_item;
        int before = items;
        for (int d = 1; d < 32; d *= 2) {
            const int other = __shfl_up_sync(~0u, before, d);
            if (lane >= d) before += other;
        }
        if (lane == 31) to[0] = before;
        before -= items;
        for (int e = begin; e < begin + each && e < experts; e++) {
            first_item[e] = before;
            before += (counts[e] + a.per_item - 1) / a.per_item;
        }
    }
    __syncthreads();
    for (int e = threadIdx.x; e < experts; e += blockDim.x) {
        for (int i = 0; i * a.per_item < counts[e]; i++) to[4 + first_item[e] + i] = e;
        counts[e] = first_item[e] * a.per_item;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < a.pairs; i += blockDim.x)
        if ((u32)a.ids[i] < (u32)experts) slots[atomicAdd(&counts[a.ids[i]], 1)] = i;
}

// What the experts of every token add up to, in the order of the slots.
struct Summing {
    const u32* rows;  // [tokens, top_k, words]
    const int32_t* ids;
    u32* out;  // [tokens, words]
    int32_t tokens, top_k, experts, words;
};

template <class Number>
DEVICE void sum(const Summing& a) {
    const int64_t count = (int64_t)a.tokens * a.words, stride = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride) {
        const int64_t token = i / a.words;
        float low = 0, high = 0;
        for (int k = 0; k < a.top_k; k++) {
            if ((u32)a.ids[token * a.top_k + k] >= (u32)a.experts) continue;
            const u32 pair = a.rows[(token * a.top_k + k) * a.words + i % a.words];
            low += Number::low(pair);
            high += Number::high(pair);
        }
        a.out[i] = Number::round(low) | (u32)Number::round(high) << 16;
    }
}

}  // namespace packed
