// Products on processors with AVX-512: a group of 32 weights is put in its places by one instruction.
#pragma once

#include "avx2.h"

#define LEANMOE_AVX512 \
    __attribute__((target("avx512f,avx512bw,avx512vl,avx512vbmi2,avx2,fma,f16c")))
#define LEANMOE_AVX512_BF16 \
    __attribute__((target("avx512f,avx512bw,avx512vl,avx512vbmi2,avx512bf16,avx2,fma,f16c")))

namespace sparse {

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
    using Buffer = Tiles<Avx512>;
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
    using Buffer = Tiles<Avx512Bf16>;
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

}  // namespace sparse
