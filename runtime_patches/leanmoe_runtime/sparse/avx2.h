// Products on processors with AVX2, which have 16 registers of eight numbers: eight weights at a time
// are put in their places by a shuffle that a table names for each byte of a mask.
#pragma once

#include <immintrin.h>

#include <cstddef>

#include "products.h"

#define LEANMOE_AVX2 __attribute__((target("avx2,fma,f16c,popcnt,bmi2")))

namespace sparse {

// For each byte of a mask: where each of eight places takes its value from, of values that lie in turn.
struct Places {
    __m256i upper[256];    // two bytes each, into the upper half of four: bfloat16 as float32
    __m256i numbers[256];  // float32: the value's number, and below whether the place has one
    __m256i used[256];
    __m128i words[256];    // two bytes each
    __m128i codes[256];    // one byte each, into the upper half of two

    Places() {
        for (int byte = 0; byte < 256; byte++) {
            int32_t from[8], is_used[8];
            uint8_t four[32], two[16], one[16];
            std::memset(four, 0x80, sizeof four);  // of a shuffle: zero
            std::memset(two, 0x80, sizeof two);
            std::memset(one, 0x80, sizeof one);
            for (int place = 0, next = 0; place < 8; place++) {
                from[place] = is_used[place] = 0;
                if (!(byte >> place & 1)) continue;
                from[place] = next, is_used[place] = -1;
                for (uint8_t half = 0; half < 2; half++)
                    four[4 * place + 2 + half] = two[2 * place + half] =
                        static_cast<uint8_t>(2 * next + half);
                one[2 * place + 1] = static_cast<uint8_t>(next++);
            }
            std::memcpy(numbers + byte, from, sizeof from);
            std::memcpy(used + byte, is_used, sizeof is_used);
            std::memcpy(upper + byte, four, sizeof four);
            std::memcpy(words + byte, two, sizeof two);
            std::memcpy(codes + byte, one, sizeof one);
        }
    }
};

// Puts eight weights in their places. A byte of a mask is known by where its entry stands in a table,
// which takes two instructions to say: of such loops their number decides.
template <class Value>
class Placing {
    static constexpr bool WIDE = std::is_same_v<Value, Bfloat16> || std::is_same_v<Value, float>;
    static constexpr int BITS = WIDE ? 5 : 4;  // of an entry's size

  public:
    Placing() : tables_(reinterpret_cast<const char*>(&tables())) {
        __asm__("" : "+r"(tables_));  // held: compilers find the address anew for each byte
    }

    static uint64_t entry(uint32_t mask, int byte) {
        const int turn = (8 * byte - BITS) & 31;
        return (mask >> turn | mask << (32 - turn)) & (255u << BITS);
    }

    // Of up to eight values that can be read; `next` passes those that have a place.
    LEANMOE_AVX2 __m256 operator()(const Value*& next, uint64_t entry) const {
        const __m256 found = of(next, entry);
        next += __builtin_popcountll(entry);
        return found;
    }

  private:
    static const Places& tables() {
        static const Places found;
        return found;
    }

    LEANMOE_AVX2 __m256i wide(size_t table, uint64_t entry) const {
        return *reinterpret_cast<const __m256i*>(tables_ + table + entry);
    }
    LEANMOE_AVX2 __m128i narrow(size_t table, uint64_t entry) const {
        return *reinterpret_cast<const __m128i*>(tables_ + table + entry);
    }
    LEANMOE_AVX2 static __m128i read(const void* values) {
        return _mm_loadu_si128(static_cast<const __m128i*>(values));
    }

    LEANMOE_AVX2 __m256 of(const float* values, uint64_t entry) const {
        const __m256i numbers = wide(offsetof(Places, numbers), entry);
        const __m256 spread = _mm256_permutevar8x32_ps(_mm256_loadu_ps(values), numbers);
        return _mm256_and_ps(spread, _mm256_castsi256_ps(wide(offsetof(Places, used), entry)));
    }
    LEANMOE_AVX2 __m256 of(const Bfloat16* values, uint64_t entry) const {
        const __m256i twice = _mm256_broadcastsi128_si256(read(values));
        return _mm256_castsi256_ps(
            _mm256_shuffle_epi8(twice, wide(offsetof(Places, upper), entry)));
    }
    LEANMOE_AVX2 __m256 of(const Float16* values, uint64_t entry) const {
        return _mm256_cvtph_ps(
            _mm_shuffle_epi8(read(values), narrow(offsetof(Places, words), entry)));
    }
    LEANMOE_AVX2 __m256 of(const Float8* values, uint64_t entry) const {
        const __m128i codes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(values));
        const __m128i placed = _mm_shuffle_epi8(codes, narrow(offsetof(Places, codes), entry));
        // The sign moves down once more than it should: its second copy goes.
        return _mm256_cvtph_ps(_mm_and_si128(_mm_srai_epi16(placed, 1), _mm_set1_epi16(-0x4001)));
    }

    const char* tables_;
};

LEANMOE_AVX2 inline __m128 halved(__m256 sums) {
    return _mm_add_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps(sums, 1));
}

// The totals of four rows, one beside the other.
LEANMOE_AVX2 inline void put_totals(__m256 a, __m256 b, __m256 c, __m256 d, float* out) {
    const __m128 ab = _mm_hadd_ps(halved(a), halved(b)), cd = _mm_hadd_ps(halved(c), halved(d));
    _mm_storeu_ps(out, _mm_hadd_ps(ab, cd));
}

// Groups of some of a tile's rows, the rows' values in turn. Eight values are read wherever some lie:
// of the matrix's last groups from a copy that something follows.
template <class Value, int ROWS>
class Groups {
  public:
    Groups(const Matrix<Value>& matrix, int64_t row, int first)
        : values_(matrix.values_of(row) + first * matrix.keep),
          mask_(matrix.mask_of(row) + first),
          step_(TILE_ROWS * matrix.keep),
          size_(ROWS * matrix.keep),
          safe_((matrix.end - values_ - size_ - 7) / step_) {}

    const Value* values_of(int64_t group) {
        const Value* found = values_ + group * step_;
        if (__builtin_expect(group < safe_, 1)) return found;
        std::memcpy(copy_, found, size_ * sizeof(Value));
        return copy_;
    }
    const uint32_t* mask_of(int64_t group) const { return mask_ + group * TILE_ROWS; }

    // What comes next but a few: the processor itself stops at the end of a page.
    void fetch(int64_t group) const {
        const char* values = reinterpret_cast<const char*>(values_ + group * step_);
        _mm_prefetch(values + 2048, _MM_HINT_T0);
        _mm_prefetch(values + 2048 + 64, _MM_HINT_T0);
        _mm_prefetch(reinterpret_cast<const char*>(mask_of(group)) + 512, _MM_HINT_T0);
    }

  private:
    const Value* const values_;
    const uint32_t* const mask_;
    const int64_t step_, size_, safe_;
    Value copy_[ROWS * GROUP + 8];
};

template <class Value>
class Panel;

template <class Value_>
struct Avx2 {
    using Value = Value_;
    using Input = float;
    using Buffer = Panel<Value>;
    static constexpr float OF_A_CODE = OF_A_HALF;
    // As many as leave registers for weights beside their sums.
    static constexpr int rows_at_once(int tokens) { return tokens > 3 ? 2 : 4; }

    LEANMOE_AVX2 static void scale(const float* from, float scale, int64_t count, Input* to) {
        scale_each(from, scale, count, to);
    }

    template <int T>
    LEANMOE_AVX2 static void tile(const Matrix<Value>& matrix, int64_t row, const Input* const* x,
                                  Sums& sums, int at) {
        constexpr int ROWS = rows_at_once(T);
        __m256 found[TILE_ROWS][T];
        for (int r = 0; r < TILE_ROWS; r += ROWS) {
            Groups<Value, ROWS> groups(matrix, row, r);
            add_rows<T>(groups, matrix.groups, x, found + r);
        }
        for (int t = 0; t < T; t++)
            put_totals(found[0][t], found[1][t], found[2][t], found[3][t], sums[t] + at);
    }

  private:
    template <int T, int ROWS>
    LEANMOE_AVX2 static void add_rows(Groups<Value, ROWS>& groups, int64_t count,
                                      const Input* const* x, __m256 (*to)[T]) {
        const Placing<Value> placed;
        const Input* inputs[T];  // as numbers, not as what a store may change
        for (int t = 0; t < T; t++) inputs[t] = x[t];
        __m256 found[ROWS][T] = {};
        for (int64_t g = 0; g < count; g++) {
            const Value* next = groups.values_of(g);
            const uint32_t* mask = groups.mask_of(g);
            groups.fetch(g);
#pragma GCC unroll 4
            for (int r = 0; r < ROWS; r++) {
                const uint32_t own = mask[r];
#pragma GCC unroll 4
                for (int part = 0; part < 4; part++) {
                    const __m256 weights = placed(next, placed.entry(own, part));
#pragma GCC unroll 4
                    for (int t = 0; t < T; t++)
                        found[r][t] = _mm256_fmadd_ps(
                            weights, _mm256_loadu_ps(inputs[t] + g * GROUP + 8 * part), found[r][t]);
                }
            }
        }
        std::memcpy(to, found, sizeof found);
    }
};

// What lies in a core's cache while a batch is multiplied: columns of a block of rows in their places,
// as float32, and the sums of eight lanes each. Whole rows would not fit beside the inputs.
template <class Value>
class Panel {
    using Product = Avx2<Value>;
    static constexpr int64_t COLUMNS = 1024;
    static constexpr int64_t STRIDE = COLUMNS + 16;  // rows a power of two apart share places in a cache
    static constexpr int64_t LANES = 8 * TILE_TOKENS;
    static constexpr int64_t TILE_LANES = BLOCK * LANES;

  public:
    // Every lane adds up what `tile` lets it add up, in the same order: no bit of a result depends on
    // how many tokens there are.
    void multiply(const Matrix<Value>& matrix, int64_t row, const Batch<float>& batch, Sums* sums) {
        if (batch.count == 1) return multiply_tiles<Product>(matrix, row, batch, sums);
        weights_.resize(BLOCK * STRIDE);
        lanes_.assign(batch.count * TILE_LANES, 0.0f);
        constexpr int64_t most = COLUMNS / GROUP;
        for (int64_t first = 0; first < matrix.groups; first += most) {
            const int64_t end = std::min(first + most, matrix.groups);
            for (int r = 0; r < BLOCK; r += TILE_ROWS)
                place(matrix, row + r, first, end, weights_.data() + r * STRIDE);
            for (int i = 0; i < batch.count; i++)
                add(batch.tokens[i], batch.x[i], first * GROUP, (end - first) * GROUP,
                    lanes_.data() + i * TILE_LANES);
        }
        for (int i = 0; i < batch.count; i++) put(lanes_.data() + i * TILE_LANES, sums[i]);
    }

  private:
    LEANMOE_AVX2 static void place(const Matrix<Value>& matrix, int64_t row, int64_t first, int64_t end,
                                   float* to) {
        const Placing<Value> placed;
        Groups<Value, TILE_ROWS> groups(matrix, row, 0);
        for (int64_t g = first; g < end; g++, to += GROUP) {
            const Value* next = groups.values_of(g);
            const uint32_t* mask = groups.mask_of(g);
#pragma GCC unroll 4
            for (int r = 0; r < TILE_ROWS; r++)
#pragma GCC unroll 4
                for (int part = 0; part < 4; part++)
                    _mm256_storeu_ps(to + r * STRIDE + 8 * part,
                                     placed(next, placed.entry(mask[r], part)));
        }
    }

    void add(int tokens, const float* const* x, int64_t first, int64_t columns, float* lanes) const {
        using Add = void (*)(const float*, const float* const*, int64_t, int64_t, float*);
        static constexpr Add adds[] = {add_tile<1>, add_tile<2>, add_tile<3>, add_tile<4>};
        adds[tokens - 1](weights_.data(), x, first, columns, lanes);
    }

    // Twelve sums fit into registers beside what they add up.
    template <int T>
    static void add_tile(const float* weights, const float* const* x, int64_t first, int64_t columns,
                         float* lanes) {
        constexpr int ROWS = T > 3 ? 3 : 4, REST = BLOCK % ROWS, WHOLE = BLOCK - REST;
        for (int row = 0; row < WHOLE; row += ROWS)
            add_rows<T, ROWS>(weights + row * STRIDE, x, first, columns, lanes + row * LANES);
        if constexpr (REST)
            add_rows<T, REST>(weights + WHOLE * STRIDE, x, first, columns, lanes + WHOLE * LANES);
    }

    // Lanes lie row by row, of each the tokens in turn.
    template <int T, int ROWS>
    LEANMOE_AVX2 static void add_rows(const float* weights, const float* const* x, int64_t first,
                                      int64_t columns, float* lanes) {
        __m256 found[ROWS][T];
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
            for (int t = 0; t < T; t++) found[r][t] = _mm256_load_ps(lanes + r * LANES + t * 8);
        for (int64_t c = 0; c < columns; c += 8) {
            __m256 own[ROWS];
#pragma GCC unroll 4
            for (int r = 0; r < ROWS; r++) own[r] = _mm256_load_ps(weights + r * STRIDE + c);
#pragma GCC unroll 4
            for (int t = 0; t < T; t++) {
                __m256 input = _mm256_loadu_ps(x[t] + first + c);
                __asm__("" : "+x"(input));  // loaded once: compilers read it anew for each row
#pragma GCC unroll 4
                for (int r = 0; r < ROWS; r++) found[r][t] = _mm256_fmadd_ps(own[r], input, found[r][t]);
            }
        }
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
            for (int t = 0; t < T; t++) _mm256_store_ps(lanes + r * LANES + t * 8, found[r][t]);
    }

    LEANMOE_AVX2 static void put(const float* lanes, Sums& sums) {
        for (int row = 0; row < BLOCK; row += TILE_ROWS)
            for (int t = 0; t < TILE_TOKENS; t++) {
                const float* of = lanes + row * LANES + t * 8;
                put_totals(_mm256_loadu_ps(of), _mm256_loadu_ps(of + LANES),
                           _mm256_loadu_ps(of + 2 * LANES), _mm256_loadu_ps(of + 3 * LANES),
                           sums[t] + row);
            }
    }

    Numbers<float> weights_, lanes_;
};

}  // namespace sparse
