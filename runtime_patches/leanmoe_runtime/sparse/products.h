// Products of packed rows with tokens, one set for each kind of processor. A row is divided into
// groups of 32 weights of which `keep` are stored in turn; a bit of the group's mask says where each
// belongs. A tile is 4 rows by up to 4 tokens: what is expanded is used 4 times, and 16 sums fit
// beside it into registers. The 4 rows of a tile lie group by group in turn, so that memory is read
// in one long stream: 4 streams of a row each would end before a processor learns to fetch ahead.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <type_traits>
#include <vector>

namespace sparse {

constexpr int GROUP = 32;
constexpr int TILE_ROWS = 4;
constexpr int TILE_TOKENS = 4;
// Rows of a matrix that are multiplied one tile after the other: all sizes are multiples of it.
constexpr int BLOCK = 32;

// Numbers that registers are filled from, at the beginning of a line of the cache: a load that crosses
// two costs twice.
template <class Number>
struct Lines {
    using value_type = Number;

    Lines() = default;
    template <class Other>
    Lines(const Lines<Other>&) {}

    Number* allocate(size_t count) {
        void* found = nullptr;
        if (posix_memalign(&found, 64, count * sizeof(Number))) throw std::bad_alloc();
        return static_cast<Number*>(found);
    }
    void deallocate(Number* from, size_t) { std::free(from); }
    bool operator==(const Lines&) const { return true; }
};
template <class Number>
using Numbers = std::vector<Number, Lines<Number>>;

struct Bfloat16 {
    uint16_t bits;
};
struct Float16 {
    uint16_t bits;
};
// A code of e4m3 without infinities; its block's scale is kept apart.
struct Float8 {
    uint8_t bits;
};

// One expert's packed matrix, its rows in blocks of 4.
template <class Value>
struct Matrix {
    const Value* values;   // [rows / 4, groups, 4, keep]
    const uint32_t* mask;  // [rows / 4, groups, 4]
    int64_t groups;
    int64_t keep;
    const Value* end;

    // Of a block's first row.
    const Value* values_of(int64_t row) const { return values + row * groups * keep; }
    const uint32_t* mask_of(int64_t row) const { return mask + row * groups; }
};

// Of a block's rows with up to 4 tokens; a tile writes its 4 rows of each token.
using Sums = float[TILE_TOKENS][BLOCK];

// Tiles of tokens that a block of rows is multiplied with, one after the other.
constexpr int BATCH_TILES = 8;
constexpr int64_t BATCH_TOKENS = BATCH_TILES * TILE_TOKENS;
template <class Input>
struct Batch {
    int count = 0;
    int tokens[BATCH_TILES];
    const Input* const* x[BATCH_TILES];
};

inline float bits_to_float(uint32_t bits) {
    float found;
    std::memcpy(&found, &bits, sizeof found);
    return found;
}

inline float to_float(float value) { return value; }
inline float to_float(Bfloat16 value) {
    return bits_to_float(static_cast<uint32_t>(value.bits) << 16);
}
inline float to_float(Float16 value) {
    const uint32_t sign = (value.bits & 0x8000u) << 16, rest = value.bits & 0x7fffu;
    const uint32_t fraction = rest & 0x3ffu, exponent = rest >> 10;
    if (exponent == 31) return bits_to_float(sign | 0x7f800000u | fraction << 13);
    if (exponent) return bits_to_float(sign | ((exponent + 112) << 23 | fraction << 13));
    return bits_to_float(sign | 0x33800000u) * static_cast<float>(fraction);  // of 2^-24
}

// Read as half precision of the same bits, subnormal or not, a code is 2^-8 of what it means. Where
// products read it so, inputs are multiplied by that along with the scale (layer.h).
constexpr float OF_A_HALF = 256.0f;
inline Float16 as_half(Float8 code) {
    return {static_cast<uint16_t>((code.bits & 0x80u) << 8 | (code.bits & 0x7fu) << 7)};
}
inline float to_float(Float8 code) { return to_float(as_half(code)) * OF_A_HALF; }

inline void from_float(float value, float* out) { *out = value; }
inline void from_float(float value, Bfloat16* out) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
    const uint32_t rounded = bits + 0x7fffu + (bits >> 16 & 1u);
    out->bits = static_cast<uint16_t>(is_nan ? bits >> 16 | 0x40u : rounded >> 16);
}
inline void from_float(float value, Float16* out) {
    // Of C++ compilers that know no half precision: round to nearest even by hand.
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const uint32_t sign = bits >> 16 & 0x8000u, size = bits & 0x7fffffffu;
    uint32_t found;
    if (size > 0x7f800000u) {
        found = 0x7e00u;
    } else if (size >= 0x477ff000u) {
        found = 0x7c00u;
    } else if (size < 0x38800000u) {
        const float steps = bits_to_float(size) * 16777216.0f;  // of 2^-24
        const uint32_t whole = static_cast<uint32_t>(steps);
        const float rest = steps - static_cast<float>(whole);
        found = whole + (rest > 0.5f || (rest == 0.5f && (whole & 1u)));
    } else {
        const uint32_t shifted = size - 0x38000000u;
        found = (shifted + 0xfffu + (shifted >> 13 & 1u)) >> 13;
    }
    out->bits = static_cast<uint16_t>(sign | found);
}

// What compilers make instructions of each processor of: inputs times a scale, and codes as halves.
template <class Input>
inline void scale_each(const float* from, float scale, int64_t count, Input* to) {
    for (int64_t i = 0; i < count; i++) from_float(from[i] * scale, to + i);
}
inline void halve_each(const Float8* codes, int64_t count, Float16* to) {
    for (int64_t i = 0; i < count; i++) to[i] = as_half(codes[i]);
}

// A block of rows times a batch, one tile after the other.
template <class Product>
void multiply_tiles(const Matrix<typename Product::Value>& matrix, int64_t row,
                    const Batch<typename Product::Input>& batch, Sums* sums) {
    using Tile = void (*)(const Matrix<typename Product::Value>&, int64_t,
                          const typename Product::Input* const*, Sums&, int);
    static constexpr Tile tiles[] = {&Product::template tile<1>, &Product::template tile<2>,
                                     &Product::template tile<3>, &Product::template tile<4>};
    for (int i = 0; i < batch.count; i++)
        for (int at = 0; at < BLOCK; at += TILE_ROWS)
            tiles[batch.tokens[i] - 1](matrix, row + at, batch.x[i], sums[i], at);
}

// Multiplies tile after tile. Codes that several need become numbers once: `Product::Wide` multiplies
// those, in a buffer that a core's cache of the second level holds.
template <class Product>
class Tiles {
    using Value = typename Product::Value;
    using Input = typename Product::Input;
    using Wide = typename Product::Wide;
    static constexpr bool WIDENS = std::is_same_v<Value, Float8>;

  public:
    void multiply(const Matrix<Value>& matrix, int64_t row, const Batch<Input>& batch, Sums* sums) {
        if constexpr (WIDENS)
            if (batch.count > 1) return multiply_tiles<Wide>(widened(matrix, row), 0, batch, sums);
        multiply_tiles<Product>(matrix, row, batch, sums);
    }

  private:
    Matrix<typename Wide::Value> widened(const Matrix<Value>& matrix, int64_t row) {
        const int64_t count = BLOCK * matrix.groups * matrix.keep;
        numbers_.resize(count);
        Product::widen(matrix.values_of(row), count, numbers_.data());
        const auto* numbers = numbers_.data();
        return {numbers, matrix.mask_of(row), matrix.groups, matrix.keep, numbers + count};
    }

    Numbers<typename Wide::Value> numbers_;
};

// Any processor, any type: one kept weight after the other.
template <class Value_>
struct Plain {
    using Value = Value_;
    using Input = float;
    using Buffer = Tiles<Plain>;
    static constexpr float OF_A_CODE = 1.0f;
    using Wide = Plain<float>;

    static void widen(const Float8* codes, int64_t count, float* to) {
        for (int64_t i = 0; i < count; i++) to[i] = to_float(codes[i]);
    }
    static void scale(const float* from, float scale, int64_t count, Input* to) {
        scale_each(from, scale, count, to);
    }

    template <int T>
    static void tile(const Matrix<Value>& matrix, int64_t row, const Input* const* x, Sums& sums,
                     int at) {
        const Value* values = matrix.values_of(row);
        const uint32_t* mask = matrix.mask_of(row);
        float found[TILE_ROWS][T] = {};
        for (int64_t g = 0; g < matrix.groups; g++)
            for (int r = 0; r < TILE_ROWS; r++, values += matrix.keep) {
                int64_t next = 0;
                for (uint32_t left = *mask++; left; left &= left - 1) {
                    const int64_t column = g * GROUP + __builtin_ctz(left);
                    const float weight = to_float(values[next++]);
                    for (int t = 0; t < T; t++) found[r][t] += weight * x[t][column];
                }
            }
        for (int t = 0; t < T; t++)
            for (int r = 0; r < TILE_ROWS; r++) sums[t][at + r] = found[r][t];
    }
};

}  // namespace sparse
