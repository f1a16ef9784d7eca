// Up to 16 tokens an expert, on tensor cores. A block computes tiles of 16 rows: its 8 warps expand
// the packed weights of 1024 columns into shared memory, then each multiplies an eighth of these; the
// next columns are on their way meanwhile. A word of the strip holds columns 2w and 2w + 1 of a
// group, words lie by group, and rows are 8 banks apart, so that neither scattering the values nor
// reading fragments has two lanes wait for one bank.
#pragma once

#include "values.cuh"

namespace packed {

constexpr int TENSOR_THREADS = 256;
constexpr int TENSOR_WARPS = TENSOR_THREADS / 32;
constexpr int STRIP_GROUPS = 32;
constexpr int STRIP_ROW = GROUP / 2 * STRIP_GROUPS + 8;  // words
constexpr int STRIP_BYTES = TILE_ROWS * STRIP_ROW * 4;

DEVICE int reduction_bytes(int token_tiles) { return TENSOR_WARPS * token_tiles * 128 * 4; }

// A lane's values of a group go where its mask says, 2 columns a word, `stride` words apart.
template <class Number, int KEEP>
DEVICE void scatter(const Matrix& m, const Vector<Number>* values, u32 mask, const GroupScale& scale,
                    u32* words, int stride) {
    u32 left = mask;
#pragma unroll
    for (int i = 0; i < KEEP; i++) {
        const u32 place = top_bit(left);
        if (left)
            ((uint16_t*)(words + (place >> 1) * stride))[place & 1] =
                bits_at<Number>(m, values, i, scale, place);
        left ^= bit(place);
    }
}

template <class Number>
DEVICE void put_half(const Matrix& m, u32* words, int stride, u32 entry, const GroupScale& scale) {
    const u32 place = entry >> 5 & 31;
    ((uint16_t*)(words + (place >> 1) * stride))[place & 1] = bits_of<Number>(m, entry, scale);
}

// What warps of a block have of a tile, each a part of its columns, becomes results.
template <class Number, int TOKEN_TILES>
DEVICE void put_tile(const Product& a, const int32_t* pairs, int tile, const float* parts) {
    const int rows = a.joined ? TILE_ROWS / 2 : TILE_ROWS, all = a.matrix.rows / (a.joined ? 2 : 1);
    for (int o = threadIdx.x; o < rows * TOKEN_TILES * 8; o += blockDim.x) {
        const int pair = pairs[o / rows], token = o / rows % 8, first = o % rows;
        if (pair < 0) continue;
        float found[2] = {0, 0};
        for (int half = 0; half < 1 + a.joined; half++) {
            const int row = a.joined ? 2 * first + half : first;
            const int at = o / rows / 8 * 128 + (row % 8 * 4 + token / 2) * 4 + row / 8 * 2 + token % 2;
            for (int w = 0; w < TENSOR_WARPS; w++) found[half] += parts[w * TOKEN_TILES * 128 + at];
        }
        float value = a.joined ? activate(a.activation, found[0]) * found[1] : found[0];
        if (a.weights) value *= a.weights[pair];
        a.out[(int64_t)pair * all + tile * rows + first] = Number::round(value);
    }
}

template <int TOKEN_TILES>
DEVICE void leave(float* parts, int warp, int lane, const float (&sums)[TOKEN_TILES][4]) {
#pragma unroll
    for (int n = 0; n < TOKEN_TILES; n++)
        *(float4*)(parts + ((warp * TOKEN_TILES + n) * 32 + lane) * 4) =
            float4{sums[n][0], sums[n][1], sums[n][2], sums[n][3]};
}

// The tokens whose columns a lane hands to the tensor cores, null where there is none.
template <int TOKEN_TILES>
struct Tokens {
    const uint16_t* rows[TOKEN_TILES];

    DEVICE void find(const Product& a, const int32_t* pairs, int lane) {
#pragma unroll
        for (int n = 0; n < TOKEN_TILES; n++) {
            const int pair = pairs[n * 8 + lane / 4];
            rows[n] = pair < 0 ? nullptr : a.x + (int64_t)(pair / a.pairs_of_row) * a.matrix.columns;
        }
    }
    DEVICE uint4 eight(int n, int column, int columns) const {
        return rows[n] && column < columns ? *(const uint4*)(rows[n] + column) : zeros();
    }
};

// Two of the units of a strip: a warp's share.
template <class Number, int KEEP>
struct Share {
    static const int vectors = KEEP / 8;
    Vector<Number> values[2][vectors];
    u32 mask[2];
};

// Where a block is: a tile of an item, and a strip of its columns.
struct Place {
    int work, item, tile, strip;
};

struct Grid {
    int tiles, rows, strips, lane, warp;  // rows of a unit, and units of a row that a strip spans
    int block_bits;                       // of the number of units above each other in a tile

    DEVICE Place place(int work) const {
        const int item = work / tiles;
        return {work, item, work - item * tiles, 0};
    }
    DEVICE int block_of(int slot) const { return slot & ((1 << block_bits) - 1); }
    DEVICE int across_of(int slot) const { return slot >> block_bits; }
    // The unit in a slot of a strip, -1 past the end of the rows.
    DEVICE int64_t unit(const Matrix& m, const Items& items, const Place& at, int slot) const {
        const int i = at.strip * rows + across_of(slot);
        if (i >= m.across) return -1;
        const int64_t expert = items.experts[at.item], block = (at.tile << block_bits) + block_of(slot);
        return expert * m.units() + block * m.across + i;
    }
};

template <class Number, int KEEP>
DEVICE void fetch(Share<Number, KEEP>& s, const Matrix& m, const Items& items, const Grid& g, const Place& at) {
#pragma unroll
    for (int k = 0; k < 2; k++) {
        const int64_t u = g.unit(m, items, at, g.warp + k * TENSOR_WARPS);
        s.mask[k] = 0;
        if (u < 0) continue;
#pragma unroll
        for (int v = 0; v < s.vectors; v++)
            s.values[k][v] = read_vector<Number>(m, (u * s.vectors + v) * 32 + g.lane);
        s.mask[k] = stream(m.mask + u * 32 + g.lane);
    }
}

template <class Number, int KEEP>
DEVICE void expand(const Share<Number, KEEP>& s, const Matrix& m, const Items& items, const Grid& g,
                   const Place& at, u32* strip) {
#pragma unroll
    for (int k = 0; k < 2; k++) {
        const int slot = g.warp + k * TENSOR_WARPS;
        u32* corner = strip + g.block_of(slot) * g.rows * STRIP_ROW + g.across_of(slot) * m.lanes;
        u32* own = corner + m.row_of(g.lane) * STRIP_ROW + m.group_of(g.lane);
#pragma unroll
        for (int w = 0; w < GROUP / 2; w++) own[w * STRIP_GROUPS] = 0;
        const int expert = items.experts[at.item];
        const int row = at.tile * TILE_ROWS + g.block_of(slot) * g.rows;
        const int first = (at.strip * g.rows + g.across_of(slot)) * m.lanes;
        const auto scale = [&](int lane) {
            return scale_of<Number>(m, expert, row + m.row_of(lane), (first + m.group_of(lane)) * GROUP);
        };
        scatter<Number, KEEP>(m, s.values[k], s.mask[k], scale(g.lane), own, STRIP_GROUPS);
        if (!m.starts) continue;
        __syncwarp();
        const int64_t u = g.unit(m, items, at, slot);
        if (u < 0) continue;
        const int stop = m.starts[(u + 1) * g.rows];
        for (int i = m.starts[u * g.rows] + g.lane; i < stop; i += 32) {
            const u32 entry = m.entries[i], lane = entry & 31;
            put_half<Number>(m, corner + m.row_of(lane) * STRIP_ROW + m.group_of(lane), STRIP_GROUPS,
                             entry, scale(lane));
        }
    }
}

// An eighth of a strip: 8 groups by 8 words, 4 words of each group at a time.
template <class Number, int TOKEN_TILES>
DEVICE void multiply_strip(const u32* strip, const uint4 (&x)[2][TOKEN_TILES][2], const Grid& g,
                           float (&sums)[TOKEN_TILES][4]) {
    const u32* low = strip + g.lane / 4 * STRIP_ROW + g.warp % 4 * 8 + g.lane % 4 * 2;
#pragma unroll
    for (int quad = 0; quad < 2; quad++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const u32* word = low + (g.warp / 4 * 8 + quad * 4 + i) * STRIP_GROUPS;
            const uint2 top = *(const uint2*)word, bottom = *(const uint2*)(word + 8 * STRIP_ROW);
#pragma unroll
            for (int n = 0; n < TOKEN_TILES; n++)
                Number::mma(sums[n], top.x, bottom.x, top.y, bottom.y, word_of(x[quad][n][0], i),
                            word_of(x[quad][n][1], i));
        }
}

template <int TOKEN_TILES>
DEVICE void read_x(uint4 (&x)[2][TOKEN_TILES][2], const Tokens<TOKEN_TILES>& tokens, const Matrix& m,
                   const Grid& g, int strip) {
    const int group = strip * STRIP_GROUPS + g.warp % 4 * 8 + g.lane % 4 * 2;
    // Past the strip's own groups its words are zeros.
#pragma unroll
    for (int quad = 0; quad < 2; quad++)
#pragma unroll
        for (int n = 0; n < TOKEN_TILES; n++)
#pragma unroll
            for (int k = 0; k < 2; k++)
                x[quad][n][k] = tokens.eight(
                    n, (group + k) * GROUP + (g.warp / 4 * 8 + quad * 4) * 2, m.columns);
}

template <class Number, int KEEP, int TOKEN_TILES>
DEVICE void tensor(const Product& a) {
    const Items items = items_of(a, (int32_t*)SHARED);
    const Matrix& m = a.matrix;
    u32* strips = (u32*)(SHARED + a.shared_x);
    float* parts = (float*)(SHARED + a.shared_x + 2 * STRIP_BYTES);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, rows = 1 << m.row_bits();
    const int tiles = m.rows / TILE_ROWS, along = (m.across + rows - 1) >> m.row_bits();
    const Grid g = {tiles, rows, along, lane, warp, 4 - m.row_bits()};
    const int works = items.count * g.tiles;
    Place at = g.place(blockIdx.x);
    if (at.work >= works) return;
    Tokens<TOKEN_TILES> tokens;
    float sums[TOKEN_TILES][4];
    Share<Number, KEEP> share;
    fetch(share, m, items, g, at);
    for (int turn = 0; at.work < works; turn++) {
        const int32_t* pairs = items.pairs + at.item * items.per_item;
        if (at.strip == 0) {
            tokens.find(a, pairs, lane);
#pragma unroll
            for (int i = 0; i < TOKEN_TILES * 4; i++) sums[i / 4][i % 4] = 0;
        }
        u32* strip = strips + turn % 2 * (STRIP_BYTES / 4);
        uint4 x[2][TOKEN_TILES][2];
        expand(share, m, items, g, at, strip);
        read_x(x, tokens, m, g, at.strip);
        Place next = at;
        if (++next.strip == g.strips) next = g.place(at.work + (int)gridDim.x);
        if (next.work < works) fetch(share, m, items, g, next);
        __syncthreads();
        multiply_strip<Number, TOKEN_TILES>(strip, x, g, sums);
        if (next.strip == 0) {
            leave<TOKEN_TILES>(parts, warp, lane, sums);
            __syncthreads();
            put_tile<Number, TOKEN_TILES>(a, pairs, at.tile, parts);
        }
        at = next;
    }
}

}  // namespace packed
