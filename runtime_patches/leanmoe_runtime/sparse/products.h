// Products of packed rows with tokens, one set for each kind of processor. A row is divided into
// groups of 32 weights of which `keep` are stored in turn; a bit of the group's mask says where each
// belongs. A tile is 4 rows by up to 4 tokens: what is expanded is used 4 times, and 16 sums fit
// beside it into registers. The 4 rows of a tile lie group by group in turn, so that memory is read
// in one long stream: 4 streams of a row each would end before a processor learns to fetch ahead.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace sparse {

constexpr int GROUP = 32;
constexpr int TILE_ROWS = 4;
constexpr int TILE_TOKENS = 4;
// Rows of a matrix that are multiplied one tile after the other: all sizes are multiples of it.
constexpr int BLOCK = 32;

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

// Any processor, any type: one kept weight after the other.
template <class Value_>
struct Plain {
    using Value = Value_;
    using Input = float;
    static constexpr float OF_A_CODE = 1.0f;
    // Multiplies what codes have become, where several tiles of tokens need it.
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

#if defined(__x86_64__)

#define LEANMOE_AVX2 __attribute__((target("avx2,fma,f16c")))
#define LEANMOE_AVX512 \
    __attribute__((target("avx512f,avx512bw,avx512vl,avx512vbmi2,avx2,fma,f16c")))
#define LEANMOE_AVX512_BF16 \
    __attribute__((target("avx512f,avx512bw,avx512vl,avx512vbmi2,avx512bf16,avx2,fma,f16c")))

// For each byte of a mask: which of up to eight values that lie in turn belongs in each place.
struct Places {
    __m256i of[256];
    __m256i used[256];

    Places() {
        for (int byte = 0; byte < 256; byte++) {
            alignas(32) int32_t from[8], bits[8];
            for (int place = 0, next = 0; place < 8; place++) {
                const bool is_used = byte >> place & 1;
                bits[place] = is_used ? -1 : 0;
                from[place] = is_used ? next++ : 0;
            }
            std::memcpy(of + byte, from, sizeof from);
            std::memcpy(used + byte, bits, sizeof bits);
        }
    }
};

inline const Places& places() {
    static const Places found;
    return found;
}

LEANMOE_AVX2 inline __m256 load8(const float* values) { return _mm256_loadu_ps(values); }
LEANMOE_AVX2 inline __m256 load8(const Bfloat16* values) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(values));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
LEANMOE_AVX2 inline __m256 load8(const Float16* values) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(values)));
}

LEANMOE_AVX2 inline __m256 load8(const Float8* values) {
    const __m128i codes =
        _mm_cvtepu8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(values)));
    // The sign moves down once more than it should: its second copy goes.
    const __m128i halves = _mm_srai_epi16(_mm_slli_epi16(codes, 8), 1);
    return _mm256_cvtph_ps(_mm_and_si128(halves, _mm_set1_epi16(-0x4001)));
}

LEANMOE_AVX2 inline __m128 halved(__m256 sums) {
    return _mm_add_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps(sums, 1));
}

// The totals of four rows, one beside the other.
LEANMOE_AVX2 inline void put_totals(__m256 a, __m256 b, __m256 c, __m256 d, float* out) {
    const __m128 ab = _mm_hadd_ps(halved(a), halved(b)), cd = _mm_hadd_ps(halved(c), halved(d));
    _mm_storeu_ps(out, _mm_hadd_ps(ab, cd));
}

// Eight weights at a time, put in their places by a table.
template <class Value_>
struct Avx2 {
    using Value = Value_;
    using Input = float;
    static constexpr float OF_A_CODE = OF_A_HALF;
    using Wide = Avx2<Float16>;

    LEANMOE_AVX2 static void widen(const Float8* codes, int64_t count, Float16* to) {
        halve_each(codes, count, to);
    }
    LEANMOE_AVX2 static void scale(const float* from, float scale, int64_t count,
                                    Input* to) {
        scale_each(from, scale, count, to);
    }

    template <int T>
    LEANMOE_AVX2 static void tile(const Matrix<Value>& matrix, int64_t row, const Input* const* x,
                                  Sums& sums, int at) {
        const Places& table = places();
        const Value* values = matrix.values_of(row);
        const uint32_t* mask = matrix.mask_of(row);
        __m256 found[TILE_ROWS][T];
        for (int r = 0; r < TILE_ROWS; r++)
            for (int t = 0; t < T; t++) found[r][t] = _mm256_setzero_ps();
        for (int64_t g = 0; g < matrix.groups; g++)
            for (int r = 0; r < TILE_ROWS; r++) {
                const uint32_t bits = *mask++;
                for (int part = 0; part < 4; part++) {
                    const uint32_t byte = bits >> 8 * part & 255u;
                    const int kept = __builtin_popcount(byte);
                    const __m256 spread = _mm256_permutevar8x32_ps(
                        load_some(values, kept, matrix.end), _mm256_load_si256(table.of + byte));
                    const __m256 weights = _mm256_and_ps(
                        spread, _mm256_castsi256_ps(_mm256_load_si256(table.used + byte)));
                    const int64_t column = g * GROUP + 8 * part;
                    for (int t = 0; t < T; t++)
                        found[r][t] = _mm256_fmadd_ps(weights, _mm256_loadu_ps(x[t] + column),
                                                      found[r][t]);
                    values += kept;
                }
            }
        for (int t = 0; t < T; t++)
            put_totals(found[0][t], found[1][t], found[2][t], found[3][t], sums[t] + at);
    }

    // Eight values; what lies behind the matrix's last is not read.
    LEANMOE_AVX2 static __m256 load_some(const Value* values, int kept, const Value* end) {
        if (end - values >= 8) return load8(values);
        Value last[8] = {};
        std::memcpy(last, values, kept * sizeof(Value));
        return load8(last);
    }
};

LEANMOE_AVX512 inline __m256 folded(__m512 sums) {
    const __m512d high = _mm512_castps_pd(sums);
    return _mm256_add_ps(_mm512_castps512_ps256(sums),
                         _mm256_castpd_ps(_mm512_extractf64x4_pd(high, 1)));
}

LEANMOE_AVX512 inline __mmask32 first_of(int64_t count) {
    return static_cast<__mmask32>((uint64_t{1} << count) - 1);
}

template <int KEEP>
LEANMOE_AVX512 inline __m512i words(const void* values, int64_t keep) {
    if (KEEP == 16)
        return _mm512_castsi256_si512(_mm256_loadu_si256(static_cast<const __m256i*>(values)));
    if (KEEP == 8)
        return _mm512_castsi128_si512(_mm_loadu_si128(static_cast<const __m128i*>(values)));
    return _mm512_maskz_loadu_epi16(first_of(keep), values);
}

template <int KEEP>
LEANMOE_AVX512 inline __m512i expanded(const void* values, uint32_t mask, int64_t keep) {
    return _mm512_maskz_expand_epi16(mask, words<KEEP>(values, keep));
}

struct Halves {
    __m512 low, high;
};

template <int KEEP>
LEANMOE_AVX512 inline Halves halves(const Bfloat16* values, uint32_t mask, int64_t keep) {
    const __m512i all = expanded<KEEP>(values, mask, keep);
    const __m512i low = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(all));
    const __m512i high = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(all, 1));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(low, 16)),
            _mm512_castsi512_ps(_mm512_slli_epi32(high, 16))};
}
template <int KEEP>
LEANMOE_AVX512 inline Halves halves(const Float16* values, uint32_t mask, int64_t keep) {
    const __m512i all = expanded<KEEP>(values, mask, keep);
    return {_mm512_cvtph_ps(_mm512_castsi512_si256(all)),
            _mm512_cvtph_ps(_mm512_extracti64x4_epi64(all, 1))};
}
// Up to 16 codes, or up to 32, one to a word. They become numbers before they are put in their places:
// half of the weights take half of a register.
LEANMOE_AVX512 inline __m256i codes16(const Float8* values, int64_t keep) {
    const auto* from = reinterpret_cast<const __m128i*>(values);
    return _mm256_cvtepu8_epi16(keep == 16 ? _mm_loadu_si128(from) : _mm_loadl_epi64(from));
}
LEANMOE_AVX512 inline __m512i codes32(const Float8* values, int64_t keep) {
    return _mm512_cvtepu8_epi16(_mm256_maskz_loadu_epi8(first_of(keep), values));
}

template <int KEEP>
LEANMOE_AVX512 inline __m512i half_words(const Float8* values, int64_t keep) {
    if constexpr (KEEP == 16 || KEEP == 8) {
        const __m256i found = _mm256_srai_epi16(_mm256_slli_epi16(codes16(values, KEEP), 8), 1);
        return _mm512_castsi256_si512(_mm256_and_si256(found, _mm256_set1_epi16(-0x4001)));
    }
    const __m512i found = _mm512_srai_epi16(_mm512_slli_epi16(codes32(values, keep), 8), 1);
    return _mm512_and_si512(found, _mm512_set1_epi16(-0x4001));
}
template <int KEEP>
LEANMOE_AVX512 inline Halves halves(const Float8* values, uint32_t mask, int64_t keep) {
    const __m512i all = _mm512_maskz_expand_epi16(mask, half_words<KEEP>(values, keep));
    return {_mm512_cvtph_ps(_mm512_castsi512_si256(all)),
            _mm512_cvtph_ps(_mm512_extracti64x4_epi64(all, 1))};
}
template <int KEEP>
LEANMOE_AVX512 inline Halves halves(const float* values, uint32_t mask, int64_t) {
    const __mmask16 low = mask & 0xffffu, high = mask >> 16;
    const float* rest = values + __builtin_popcount(low);
    return {_mm512_maskz_expandloadu_ps(low, values), _mm512_maskz_expandloadu_ps(high, rest)};
}

// How far ahead memory is fetched: the processor itself stops at the end of a page.
constexpr int64_t AHEAD = 4096;

LEANMOE_AVX512 inline void fetch(const void* from, int64_t bytes) {
    for (int64_t at = 0; at < bytes; at += 64)
        _mm_prefetch(static_cast<const char*>(from) + AHEAD + at, _MM_HINT_T0);
}

// A group's weights as bfloat16.
template <int KEEP>
LEANMOE_AVX512 inline __m512i pairs(const Bfloat16* values, uint32_t mask, int64_t keep) {
    return expanded<KEEP>(values, mask, keep);
}
// Three bits of fraction become seven, and the exponent counts from 127 instead of 7; codes below 8
// mean m * 2^-9, 0 among them.
LEANMOE_AVX512 inline __m256i bfloat16_words(__m256i codes) {
    const __m256i small = _mm256_castsi128_si256(
        _mm_setr_epi16(0, 0x3b00, 0x3b80, 0x3bc0, 0x3c00, 0x3c20, 0x3c40, 0x3c60));
    const __m256i size = _mm256_and_si256(codes, _mm256_set1_epi16(0x7f));
    const __m256i normal = _mm256_add_epi16(_mm256_slli_epi16(size, 4), _mm256_set1_epi16(0x3c00));
    const __mmask16 is_small = _mm256_cmplt_epu16_mask(size, _mm256_set1_epi16(8));
    const __m256i found = _mm256_mask_permutexvar_epi16(normal, is_small, size, small);
    return _mm256_or_si256(found, _mm256_slli_epi16(_mm256_andnot_si256(size, codes), 8));
}
LEANMOE_AVX512 inline __m512i bfloat16_words(__m512i codes) {
    const __m512i small = _mm512_castsi128_si512(
        _mm_setr_epi16(0, 0x3b00, 0x3b80, 0x3bc0, 0x3c00, 0x3c20, 0x3c40, 0x3c60));
    const __m512i size = _mm512_and_si512(codes, _mm512_set1_epi16(0x7f));
    const __m512i normal = _mm512_add_epi16(_mm512_slli_epi16(size, 4), _mm512_set1_epi16(0x3c00));
    const __mmask32 is_small = _mm512_cmplt_epu16_mask(size, _mm512_set1_epi16(8));
    const __m512i found = _mm512_mask_permutexvar_epi16(normal, is_small, size, small);
    return _mm512_or_si512(found, _mm512_slli_epi16(_mm512_andnot_si512(size, codes), 8));
}
template <int KEEP>
LEANMOE_AVX512 inline __m512i pairs(const Float8* values, uint32_t mask, int64_t keep) {
    if constexpr (KEEP == 16 || KEEP == 8) {
        const __m256i found = bfloat16_words(codes16(values, KEEP));
        return _mm512_maskz_expand_epi16(mask, _mm512_castsi256_si512(found));
    }
    return _mm512_maskz_expand_epi16(mask, bfloat16_words(codes32(values, keep)));
}

// 32 weights at a time, multiplied in float32.
template <class Value_, int KEEP>
struct Avx512 {
    using Value = Value_;
    using Input = float;
    static constexpr float OF_A_CODE = OF_A_HALF;
    using Wide = Avx512<Float16, KEEP>;

    LEANMOE_AVX512 static void widen(const Float8* codes, int64_t count, Float16* to) {
        halve_each(codes, count, to);
    }
    LEANMOE_AVX512 static void scale(const float* from, float scale, int64_t count,
                                    Input* to) {
        scale_each(from, scale, count, to);
    }

    template <int T>
    LEANMOE_AVX512 static void tile(const Matrix<Value>& matrix, int64_t row, const Input* const* x,
                                    Sums& sums, int at) {
        __m512 found[TILE_ROWS][T];
        for (int r = 0; r < TILE_ROWS; r++)
            for (int t = 0; t < T; t++) found[r][t] = _mm512_setzero_ps();
        const int64_t keep = KEEP ? KEEP : matrix.keep;
        const Value* values = matrix.values_of(row);
        const uint32_t* mask = matrix.mask_of(row);
        for (int64_t g = 0; g < matrix.groups; g++, values += TILE_ROWS * keep, mask += TILE_ROWS) {
            fetch(values, TILE_ROWS * keep * sizeof(Value));
            Halves weights[TILE_ROWS];
            for (int r = 0; r < TILE_ROWS; r++)
                weights[r] = halves<KEEP>(values + r * keep, mask[r], keep);
            for (int t = 0; t < T; t++) {
                const float* from = x[t] + g * GROUP;
                const __m512 low = _mm512_loadu_ps(from), high = _mm512_loadu_ps(from + 16);
                for (int r = 0; r < TILE_ROWS; r++) {
                    found[r][t] = _mm512_fmadd_ps(weights[r].low, low, found[r][t]);
                    found[r][t] = _mm512_fmadd_ps(weights[r].high, high, found[r][t]);
                }
            }
        }
        for (int t = 0; t < T; t++)
            put_totals(folded(found[0][t]), folded(found[1][t]), folded(found[2][t]),
                       folded(found[3][t]), sums[t] + at);
    }
};

// 32 weights at a time, multiplied in pairs of bfloat16.
template <class Value_, int KEEP>
struct Avx512Bf16 {
    using Value = Value_;
    using Input = Bfloat16;
    static constexpr float OF_A_CODE = 1.0f;
    using Wide = Avx512Bf16<Bfloat16, KEEP>;

    LEANMOE_AVX512_BF16 static void widen(const Float8* codes, int64_t count, Bfloat16* to) {
        for (int64_t at = 0; at < count; at += GROUP)
            _mm512_storeu_si512(to + at, bfloat16_words(codes32(codes + at, GROUP)));
    }
    LEANMOE_AVX512_BF16 static void scale(const float* from, float scale, int64_t count,
                                          Input* to) {
        scale_each(from, scale, count, to);
    }

    template <int T>
    LEANMOE_AVX512_BF16 static void tile(const Matrix<Value>& matrix, int64_t row,
                                         const Input* const* x, Sums& sums, int at) {
        __m512 found[TILE_ROWS][T];
        for (int r = 0; r < TILE_ROWS; r++)
            for (int t = 0; t < T; t++) found[r][t] = _mm512_setzero_ps();
        const int64_t keep = KEEP ? KEEP : matrix.keep;
        const Value* values = matrix.values_of(row);
        const uint32_t* mask = matrix.mask_of(row);
        for (int64_t g = 0; g < matrix.groups; g++, values += TILE_ROWS * keep, mask += TILE_ROWS) {
            fetch(values, TILE_ROWS * keep * sizeof(Value));
            // Into a register each: one for all would let every row wait for the one before it.
            __m512bh weights[TILE_ROWS];
            for (int r = 0; r < TILE_ROWS; r++)
                weights[r] =
                    reinterpret_cast<__m512bh>(pairs<KEEP>(values + r * keep, mask[r], keep));
            for (int t = 0; t < T; t++) {
                const auto input =
                    reinterpret_cast<__m512bh>(_mm512_loadu_si512(x[t] + g * GROUP));
                for (int r = 0; r < TILE_ROWS; r++)
                    found[r][t] = _mm512_dpbf16_ps(found[r][t], weights[r], input);
            }
        }
        for (int t = 0; t < T; t++)
            put_totals(folded(found[0][t]), folded(found[1][t]), folded(found[2][t]),
                       folded(found[3][t]), sums[t] + at);
    }
};

#endif  // x86_64

}  // namespace sparse
