// Up to 2 tokens an expert, on CUDA cores: each stored value finds its column by the mask's top bit.
// x lies in shared memory so that a lane reads from a bank of its own, behind a column of zeros
// that values without a place multiply. Bound by the bytes of the weights.
#pragma once

#include "values.cuh"

namespace packed {

constexpr int GATHER_THREADS = 384;
constexpr int COLUMN_BYTES = 32 * 4;               // one place of all lanes
constexpr int UNIT_BYTES = (GROUP + 1) * COLUMN_BYTES;  // x of a unit

template <class Number, int T>
struct GatherInput;
template <class Number>
struct GatherInput<Number, 1> {
    static DEVICE u32 word(const u32 (&halves)[1]) { return as_bits(Number::low(halves[0])); }
    static DEVICE void add(float (&sum)[1], float weight, const uint8_t* x) {
        sum[0] += weight * *(const float*)x;
    }
};
template <class Number>
struct GatherInput<Number, 2> {
    static DEVICE u32 word(const u32 (&halves)[2]) { return halves[0] | halves[1] << 16; }
    static DEVICE void add(float (&sum)[2], float weight, const uint8_t* x) {
        const u32 pair = *(const u32*)x;
        sum[0] += weight * Number::low(pair);
        sum[1] += weight * Number::high(pair);
    }
};

// Eight columns of a row of x from `column` on.
DEVICE uint4 eight_of(const uint16_t* row, const int32_t* order, int column) {
    if (!order) return *(const uint4*)(row + column);
    const int4 a = *(const int4*)(order + column), b = *(const int4*)(order + column + 4);
    return {row[a.x] | (u32)row[a.y] << 16, row[a.z] | (u32)row[a.w] << 16,
            row[b.x] | (u32)row[b.y] << 16, row[b.z] | (u32)row[b.w] << 16};
}

template <class Number, int T>
DEVICE void lay_out(const Product& a, int expert, const int32_t* pairs, uint8_t* xs) {
    const Matrix& m = a.matrix;
    const int32_t* order = a.orders ? a.orders + (int64_t)expert * m.columns : nullptr;
    for (int i = threadIdx.x; i < m.across * 32; i += blockDim.x)
        *(u32*)(xs + i / 32 * UNIT_BYTES + i % 32 * 4) = 0;
    const uint16_t* rows[T];
#pragma unroll
    for (int t = 0; t < T; t++)
        rows[t] = pairs[t] < 0 ? nullptr : a.x + (int64_t)(pairs[t] / a.pairs_of_row) * m.columns;
    for (int i = threadIdx.x; i < m.across * 128; i += blockDim.x) {
        const int unit = i / 128, eight = i / 32 % 4, lane = i % 32;
        const int column = (unit * m.lanes + m.group_of(lane)) * GROUP + eight * 8;
        uint4 x[T];
#pragma unroll
        for (int t = 0; t < T; t++)
            x[t] = rows[t] && column < m.columns ? eight_of(rows[t], order, column) : zeros();
        uint8_t* to = xs + unit * UNIT_BYTES + (1 + eight * 8) * COLUMN_BYTES + lane * 4;
#pragma unroll
        for (int c = 0; c < 8; c++) {
            u32 halves[T];
#pragma unroll
            for (int t = 0; t < T; t++) halves[t] = word_of(x[t], c / 2) >> c % 2 * 16 & 0xffff;
            *(u32*)(to + c * COLUMN_BYTES) = GatherInput<Number, T>::word(halves);
        }
    }
}

// Units that are in flight at a time, so that about 64 bytes a lane are.
template <class Number, int KEEP>
struct Flight {
    static const int vectors = KEEP / 8, units = KEEP == 8 ? 3 : KEEP == 16 ? 2 : 1;
    Vector<Number> values[units][vectors];
    u32 mask[units];
    int32_t start[units], stop[units];
};

template <class Number, int KEEP>
DEVICE void take_off(Flight<Number, KEEP>& f, const Matrix& m, int64_t base, int unit, int last, int lane) {
#pragma unroll
    for (int k = 0; k < f.units; k++) {
        if (unit + k >= last) return;
        const int64_t u = base + unit + k;
#pragma unroll
        for (int v = 0; v < f.vectors; v++)
            f.values[k][v] = read_vector<Number>(m, (u * f.vectors + v) * 32 + lane);
        f.mask[k] = stream(m.mask + u * 32 + lane);
        if (m.starts) {
            const int64_t at = (u << m.row_bits()) + m.row_of(lane);
            f.start[k] = m.starts[at];
            f.stop[k] = m.starts[at + 1];
        }
    }
}

template <class Number, int KEEP, int T>
DEVICE void add_unit(const Flight<Number, KEEP>& f, int k, const Matrix& m, int expert, int block,
                     int unit, const uint8_t* xs, int lane, float (&sum)[T]) {
    using Input = GatherInput<Number, T>;
    const uint8_t* own = xs + COLUMN_BYTES + lane * 4;
    const int row = (block << m.row_bits()) + m.row_of(lane), first = unit * m.lanes;
    const auto scale = scale_of<Number>(m, expert, row, (first + m.group_of(lane)) * GROUP);
    u32 left = f.mask[k];
#pragma unroll
    for (int i = 0; i < KEEP; i++) {
        const u32 place = top_bit(left);
        left ^= bit(place);
        // Place -1, of a value that only fills up, is the column of zeros.
        Input::add(sum, value_at<Number>(m, f.values[k], i, scale, place),
                   own + (int)place * COLUMN_BYTES);
    }
    if (!m.starts) return;
    for (int i = f.start[k] + m.group_of(lane); i < f.stop[k]; i += m.lanes) {
        const u32 entry = m.entries[i], group = first + m.group_of(entry & 31);
        const auto of_group = scale_of<Number>(m, expert, row, group * GROUP);
        Input::add(sum, value_of<Number>(m, entry, of_group),
                   xs + (1 + (entry >> 5 & 31)) * COLUMN_BYTES + (entry & 31) * 4);
    }
}

// Writes what the lanes of the rows of a unit have added up.
template <class Number, int T>
DEVICE void put_rows(const Product& a, const int32_t* pairs, int block, int lane, float (&sum)[T],
                     float (&gate)[T]) {
    const Matrix& m = a.matrix;
    const int lanes = m.lanes, rows = 1 << m.row_bits(), row = block * rows + m.row_of(lane);
#pragma unroll
    for (int t = 0; t < T; t++) {
        float f = sum[t];
        sum[t] = 0;
        for (int d = lanes / 2; d; d /= 2) f += __shfl_xor_sync(~0u, f, d);
        const bool speaks = m.group_of(lane) == 0 && pairs[t] >= 0;
        if (!a.joined) {
            const float weight = a.weights && speaks ? a.weights[pairs[t]] : 1.0f;
            if (speaks) a.out[(int64_t)pairs[t] * a.matrix.rows + row] = Number::round(f * weight);
            continue;
        }
        const float up = rows > 1 ? __shfl_xor_sync(~0u, f, lanes & 31) : f;
        if (rows > 1) gate[t] = f;
        if (rows > 1 ? row % 2 == 0 && speaks : row % 2 && speaks)
            a.out[(int64_t)pairs[t] * (a.matrix.rows / 2) + row / 2] =
                Number::round(activate(a.activation, gate[t]) * up);
        if (rows == 1) gate[t] = f;
    }
}

// The part of an expert's rows that falls to this warp.
template <class Number, int KEEP, int T>
DEVICE void gather_rows(const Product& a, int expert, const int32_t* pairs, const uint8_t* xs,
                        int64_t share, int64_t shares, int lane) {
    const Matrix& m = a.matrix;
    const int step = m.lanes == 32 && a.joined ? 2 : 1, blocks = m.rows * m.lanes / 32 / step;
    const int first = (int)(blocks * share / shares) * step;
    const int end = (int)(blocks * (share + 1) / shares) * step;
    const int last = end * m.across;
    int unit = first * m.across, at = 0, block = first;
    if (unit >= last) return;
    const int64_t base = expert * m.units();
    float sum[T], gate[T];
#pragma unroll
    for (int t = 0; t < T; t++) sum[t] = gate[t] = 0;
    Flight<Number, KEEP> now, next;
    take_off(now, m, base, unit, last, lane);
    for (; unit < last; unit += now.units) {
        take_off(next, m, base, unit + now.units, last, lane);
#pragma unroll
        for (int k = 0; k < now.units; k++) {
            if (unit + k >= last) break;
            add_unit<Number, KEEP, T>(now, k, m, expert, block, at, xs + at * UNIT_BYTES, lane, sum);
            if (++at == m.across) {
                put_rows<Number, T>(a, pairs, block++, lane, sum, gate);
                at = 0;
            }
        }
        now = next;
    }
}

// Blocks are shared out among the items; where there are more items, each block takes several.
template <class Number, int KEEP, int T>
DEVICE void gather(const Product& a) {
    const Items items = items_of(a, (int32_t*)SHARED);
    uint8_t* xs = SHARED + a.shared_x;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    const int64_t n = items.count, blocks = gridDim.x, b = blockIdx.x;
    if (n == 0) return;
    const bool spread = n < blocks;
    for (int64_t item = spread ? b * n / blocks : b; item < n; item += blocks) {
        const int64_t first = spread ? (item * blocks + n - 1) / n : b;
        const int64_t end = spread ? ((item + 1) * blocks + n - 1) / n : b + 1;
        const int32_t* pairs = items.pairs + item * items.per_item;
        const int expert = items.experts[item];
        lay_out<Number, T>(a, expert, pairs, xs);
        __syncthreads();
        gather_rows<Number, KEEP, T>(a, expert, pairs, xs, (b - first) * warps + warp,
                                     (end - first) * warps, lane);
        __syncthreads();
    }
}

}  // namespace packed
