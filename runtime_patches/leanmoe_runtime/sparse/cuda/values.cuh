// How a matrix's values lie: numbers of two bytes, or float8 codes of one that are scaled when they are
// read. All else is the same for both. A scale is of a block of rows and columns of the source; a group
// of 32 lies within one, unless its expert orders columns in its own way.
#pragma once

#include "step.cuh"

namespace packed {

// Eight values are a vector.
template <class Number>
struct Stored {
    typedef uint4 Vector;
    static constexpr bool coded = false;
};
// Codes that are computed as Number.
template <class Number>
struct Coded : Number {};
template <class Number>
struct Stored<Coded<Number>> {
    typedef uint2 Vector;
    static constexpr bool coded = true;
};
template <class Number>
using Vector = typename Stored<Number>::Vector;

template <class Number>
DEVICE Vector<Number> read_vector(const Matrix& m, int64_t at) {
    return stream((const Vector<Number>*)m.values + at);
}

// A code is half precision of the same bits, 2^-8 of its number.
DEVICE float number_of(u32 code) {
    return Float16::low((code & 0x80) << 8 | (code & 0x7f) << 7) * 256.0f;
}

// What the values of a group are multiplied with, as places in the matrix's scales and orders.
struct GroupScale {
    int row;    // of the scales of the row's blocks
    int order;  // of the group's columns, -1 where all are of one block
    float all;

    DEVICE float of(const Scales& s, u32 place) const {
        return order < 0 ? all : s.numbers[row + (s.orders[order + (place & 31)] >> s.column_shift)];
    }
};

template <class Number>
DEVICE GroupScale scale_of(const Matrix& m, int expert, int row, int column) {
    if constexpr (!Stored<Number>::coded) return {};
    const Scales& s = m.scales;
    const int more = s.halves - 1;  // of two halves, rows lie in turn
    const int block = (s.first_row + (row >> more)) / s.block_rows;
    const int numbers = ((expert * s.halves + (row & more)) * s.row_blocks + block) * s.column_blocks;
    // What fills up the last unit of a row is of no block.
    if (column >= m.columns) return {numbers, -1, 0.0f};
    const float all = s.numbers[numbers + ((s.first_column + column) >> s.column_shift)];
    return {numbers, s.orders ? expert * m.columns + column : -1, all};
}

DEVICE u32 code_at(const uint2* values, int i) {
    return (i % 8 < 4 ? values[i / 8].x : values[i / 8].y) >> i % 4 * 8 & 0xff;
}

// Value i of a group, which belongs in a place.
template <class Number>
DEVICE float value_at(const Matrix& m, const Vector<Number>* values, int i, const GroupScale& scale,
                      u32 place) {
    if constexpr (Stored<Number>::coded) {
        return number_of(code_at(values, i)) * scale.of(m.scales, place);
    } else {
        const u32 pair = word_of(values[i / 8], i / 2 % 4);
        return i & 1 ? Number::high(pair) : Number::low(pair);
    }
}

// The same, as Number writes it.
template <class Number>
DEVICE uint16_t bits_at(const Matrix& m, const Vector<Number>* values, int i,
                        const GroupScale& scale, u32 place) {
    if constexpr (Stored<Number>::coded)
        return Number::round(value_at<Number>(m, values, i, scale, place));
    else
        return word_of(values[i / 8], i / 2 % 4) >> i % 2 * 16;
}

// An entry of the overflow list; scales are of its group.
template <class Number>
DEVICE float value_of(const Matrix& m, u32 entry, const GroupScale& scale) {
    if constexpr (Stored<Number>::coded)
        return number_of(entry >> 16) * scale.of(m.scales, entry >> 5 & 31);
    else
        return Number::high(entry);
}
template <class Number>
DEVICE uint16_t bits_of(const Matrix& m, u32 entry, const GroupScale& scale) {
    if constexpr (Stored<Number>::coded) return Number::round(value_of<Number>(m, entry, scale));
    else return entry >> 16;
}

// Of 2:4: the four pairs of a vector, first and third of one row, the others of another.
template <class Number>
DEVICE uint4 pairs_of(const Vector<Number>& v, float even, float odd) {
    if constexpr (Stored<Number>::coded) {
        const auto pair = [&](u32 codes, float scale) {
            return Number::round(number_of(codes & 0xff) * scale) |
                   (u32)Number::round(number_of(codes >> 8 & 0xff) * scale) << 16;
        };
        return {pair(v.x, even), pair(v.x >> 16, odd), pair(v.y, even), pair(v.y >> 16, odd)};
    } else {
        return v;
    }
}

}  // namespace packed
