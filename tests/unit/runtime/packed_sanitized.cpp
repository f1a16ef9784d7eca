// The CUDA kernels of packed experts on random steps, every array allocated to its last byte, for a
// build with sanitizers: gathered and expanded products against products with what is written out
// dense. Prints how many were compared.
#include "packed.cu"

#include <memory>
#include <random>

namespace {

std::mt19937 random_bits(1);

int drawn(int least, int most) { return std::uniform_int_distribution<int>(least, most)(random_bits); }

uint16_t number() { return Bfloat16::round(drawn(-100, 100) / 100.0f); }
// Of float8: any code that is a number, up to 2 in size.
uint8_t code() { return drawn(0, 1) << 7 | drawn(0, 64); }

template <class Value>
struct Room {
    std::unique_ptr<Value[]> values;
    explicit Room(int64_t count) : values(new Value[count]()) {}
    Value* at() { return values.get(); }
};

// A projection of random units; `keep` 0 is 2:4.
struct Random {
    Matrix matrix;
    Room<uint8_t> values;
    Room<float> scales;
    Room<u32> mask, entries;
    Room<int32_t> starts;

    static int64_t units(int rows, int lanes, int across, int keep) {
        return (int64_t)rows / (keep ? 32 / lanes : TILE_ROWS) * across;
    }
    static Scales blocks(int halves, int rows, int columns) {
        const int block_rows = drawn(1, 100), shift = drawn(5, 8);
        const int first_row = drawn(0, block_rows - 1), first_column = drawn(0, (1 << shift) / GROUP - 1) * GROUP;
        return {nullptr, nullptr, halves, (first_row + rows / halves - 1) / block_rows + 1,
                ((first_column + columns - 1) >> shift) + 1, block_rows, shift, first_row, first_column};
    }
    Random(int experts, int halves, int rows, int columns, int keep, int lanes, bool overflows, bool coded)
        : matrix{nullptr, nullptr, nullptr, nullptr, rows, columns, keep, lanes,
                 keep ? (columns / GROUP + lanes - 1) / lanes : (columns + 63) / 64, coded,
                 blocks(halves, rows, columns)},
          values(experts * units(rows, lanes, matrix.across, keep) * (keep ? keep : 16) * 32 * (coded ? 1 : 2)),
          scales(experts * halves * matrix.scales.row_blocks * matrix.scales.column_blocks),
          mask(experts * units(rows, lanes, matrix.across, keep) * 32),
          entries(experts * units(rows, lanes, matrix.across, keep) * 32),
          starts(experts * units(rows, lanes, matrix.across, keep) * (32 / lanes) + 1) {
        const int64_t count = experts * matrix.units();
        auto* words = reinterpret_cast<uint16_t*>(values.at());
        for (int64_t i = 0; i < count * (keep ? keep : 16) * 32; i++)
            if (coded) values.at()[i] = code();
            else words[i] = number();
        for (int64_t i = 0; i < experts * halves * matrix.scales.row_blocks * matrix.scales.column_blocks; i++)
            scales.at()[i] = drawn(1, 100) / 100.0f;
        matrix.scales.numbers = scales.at();
        for (int64_t i = 0; i < count * 32; i++) mask.at()[i] = keep ? bits(keep) : places();
        matrix.values = values.at(), matrix.mask = mask.at();
        if (overflows) spill(count);
        clear_past_the_end(count);
    }
    static u32 bits(int keep) {
        u32 found = 0;
        while (__builtin_popcount(found) < keep) found |= 1u << drawn(0, GROUP - 1);
        return found;
    }
    static u32 places() {
        static const u32 nibbles[] = {4, 8, 12, 9, 13, 14};
        u32 found = 0;
        for (int i = 0; i < 8; i++) found |= nibbles[drawn(0, 5)] << 4 * i;
        return found;
    }
    void spill(int64_t count) {
        const int lanes = matrix.lanes;
        int next = 0;
        for (int64_t at = 0; at < count * (32 / lanes); at++) {
            for (int i = drawn(0, lanes); i > 0; i--) {
                const int lane = at % (32 / lanes) * lanes + drawn(0, lanes - 1);
                const int64_t unit = at / (32 / lanes) % matrix.across;
                if ((unit * lanes + lane % lanes) * GROUP >= matrix.columns) continue;
                const u32 place = free_place(mask.at()[at / (32 / lanes) * 32 + lane], next, at, lane);
                if (place < 32) entries.at()[next++] = (u32)(matrix.is_coded ? code() : number()) << 16 | place << 5 | lane;
            }
            starts.at()[at + 1] = next;
        }
        matrix.starts = starts.at(), matrix.entries = entries.at();
    }
    u32 free_place(u32 taken, int next, int64_t at, int lane) {
        for (int i = starts.at()[at]; i < next; i++)
            if ((int)(entries.at()[i] & 31) == lane) taken |= 1u << (entries.at()[i] >> 5 & 31);
        return ~taken ? 31 - __builtin_clz(~taken) : 32;
    }
    // What fills up the last unit of a row holds nothing.
    void clear_past_the_end(int64_t count) {
        if (!matrix.keep) return;
        for (int64_t i = 0; i < count * 32; i++) {
            const int64_t group = i / 32 % matrix.across * matrix.lanes + i % matrix.lanes;
            if (group * GROUP >= matrix.columns) mask.at()[i] = 0;
        }
    }
};

struct Trial {
    int experts = drawn(1, 3), top_k = drawn(1, experts), tokens, width = 32 * drawn(1, 5),
        hidden = 32 * drawn(1, 5), pairs;
    bool joined_orders = drawn(0, 1);
    Random gate_up, down;
    Room<uint16_t> x, out, hidden_rows, rows, ordered;
    Room<float> weights;
    Room<int32_t> ids, orders, sorted;

    Trial(int tokens, int keep, int lanes, bool overflows, bool coded)
        : tokens(tokens), pairs(tokens * top_k),
          gate_up(experts, 2, 2 * hidden, width, keep, lanes, overflows, coded),
          down(experts, 1, width, hidden, keep, lanes, overflows, coded),
          x(tokens * width), out(tokens * width), hidden_rows(pairs * hidden), rows(pairs * width),
          ordered(pairs * width), weights(pairs), ids(pairs), orders(experts * width),
          sorted(4 + pairs * 17) {
        for (int i = 0; i < tokens * width; i++) x.at()[i] = number();
        for (int i = 0; i < pairs; i++) {
            weights.at()[i] = drawn(1, 100) / 100.0f;
            ids.at()[i] = drawn(0, 3) ? (i / top_k + i % top_k) % experts : -1;
        }
        for (int i = 0; i < experts * width; i++) orders.at()[i] = width - 1 - i % width;
        if (coded) joined_orders = joined_orders && keep;
        if (coded && joined_orders) {
            gate_up.matrix.scales.orders = orders.at();
            gate_up.matrix.scales.first_column = 0;
        }
    }
    const int32_t* order() { return joined_orders ? orders.at() : nullptr; }

    std::vector<float> run(int way, int per_item) {
        const int most = std::min(pairs, experts + pairs / per_item);
        const Step step = {gate_up.matrix, down.matrix, x.at(), weights.at(), ids.at(), order(),
                           out.at(), hidden_rows.at(), rows.at(), ordered.at(), sorted.at(), tokens,
                           top_k, experts, 0, SILU, way, per_item, most};
        if (leanmoe_packed_step(&step, nullptr)) std::abort();
        std::vector<float> found;
        for (int i = 0; i < tokens * width; i++) found.push_back(Bfloat16::low(out.at()[i]));
        return found;
    }

    std::vector<float> dense() {
        Room<uint16_t> w13(experts * 2 * hidden * width), w2(experts * hidden * width);
        const Writing first = {gate_up.matrix, order(), w13.at(), 0, experts, 1, 0};
        const Writing second = {down.matrix, nullptr, w2.at(), 0, experts, 0, 0};
        if (leanmoe_packed_dense(&first, nullptr) || leanmoe_packed_dense(&second, nullptr)) std::abort();
        std::vector<float> found(tokens * width);
        for (int pair = 0; pair < pairs; pair++) {
            const int expert = ids.at()[pair], token = pair / top_k;
            if (expert < 0) continue;
            std::vector<float> held(hidden);
            for (int f = 0; f < hidden; f++) {
                float sums[2] = {0, 0};
                for (int half = 0; half < 2; half++)
                    for (int d = 0; d < width; d++)
                        sums[half] += Bfloat16::low(w13.at()[((expert * 2 + half) * hidden + f) * width + d]) *
                                      Bfloat16::low(x.at()[token * width + d]);
                held[f] = activate(SILU, sums[0]) * sums[1];
            }
            for (int d = 0; d < width; d++) {
                float sum = 0;
                for (int f = 0; f < hidden; f++)
                    sum += held[f] * Bfloat16::low(w2.at()[(expert * width + d) * hidden + f]);
                found[token * width + d] += weights.at()[pair] * sum;
            }
        }
        return found;
    }

    void compare(int way, int per_item) {
        const auto found = run(way, per_item), expected = dense();
        float largest = 1;
        for (float one : expected) largest = std::max(largest, std::fabs(one));
        for (size_t i = 0; i < found.size(); i++)
            if (std::fabs(found[i] - expected[i]) > 0.02f * largest) {
                std::fprintf(stderr, "way %d: %g, expected %g\n", way, found[i], expected[i]);
                std::exit(1);
            }
    }
};

}  // namespace

int main() {
    int count = 0;
    for (int keep : {0, 8, 16, 24})
        for (int lanes : {4, 8, 32})
            for (const auto& [overflows, coded] : {std::pair{false, false}, {true, false}, {false, true}, {true, true}}) {
                if (!keep && (lanes < 32 || overflows)) continue;
                if (coded && lanes == 4) continue;
                for (int per_item : {drawn(1, 2), 8 * drawn(1, 2)}) {
                    if (!keep && per_item < 8) continue;
                    Trial(drawn(1, 2 * per_item), keep, lanes, overflows, coded)
                        .compare(per_item < 8 ? GATHER : TENSOR, per_item);
                    count++;
                }
            }
    std::printf("%d", count);
}
