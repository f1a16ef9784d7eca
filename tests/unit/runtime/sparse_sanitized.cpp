// layer.h on random steps, every array allocated to its last byte, for a build with sanitizers: each
// instruction set against the plain one. Prints how many steps were compared.
#include "layer.h"

#include <cstdio>
#include <cstdlib>
#include <random>

namespace {

std::mt19937 random_bits(1);

int64_t drawn(int64_t least, int64_t most) {
    return std::uniform_int_distribution<int64_t>(least, most)(random_bits);
}

uint32_t mask_of(int64_t keep) {
    uint32_t mask = 0;
    while (__builtin_popcount(mask) < keep) mask |= 1u << drawn(0, sparse::GROUP - 1);
    return mask;
}

template <class Value>
Value number() {
    Value found;
    if constexpr (std::is_same_v<Value, sparse::Float8>)
        found.bits = static_cast<uint8_t>(drawn(0, 1) << 7 | drawn(0, 126));
    else
        sparse::from_float(static_cast<float>(drawn(-100, 100)) / 100.0f, &found);
    return found;
}

// Blocks of a source, and where in one a matrix begins.
struct Scales {
    std::vector<float> numbers;
    sparse::Scales told{};

    Scales(int64_t experts, int64_t halves, int64_t rows, int64_t columns) {
        told.halves = halves;
        told.block_rows = sparse::BLOCK * drawn(1, 4);
        told.block_columns = drawn(1, 200);
        told.first_row = sparse::BLOCK * drawn(0, told.block_rows / sparse::BLOCK - 1);
        told.first_column = drawn(0, told.block_columns - 1);
        told.row_blocks = (told.first_row + rows - 1) / told.block_rows + 1;
        told.column_blocks = (told.first_column + columns - 1) / told.block_columns + 1;
        for (int64_t i = experts * halves * told.row_blocks * told.column_blocks; i > 0; i--)
            numbers.push_back(static_cast<float>(drawn(1, 100)) / 10000.0f);
        numbers.shrink_to_fit();
        told.numbers = numbers.data();
    }
};

template <class Value>
struct Projection {
    std::vector<Value> values;
    std::vector<uint32_t> mask;
    std::vector<int64_t> starts{0};
    std::vector<int16_t> columns;
    std::vector<Value> rest;
    int64_t rows, groups, keep;
    Scales scales;

    Projection(int64_t experts, int64_t halves, int64_t rows, int64_t groups, int64_t keep)
        : rows(rows), groups(groups), keep(keep),
          scales(experts, halves, rows / halves, groups * sparse::GROUP) {
        for (int64_t i = 0; i < experts * rows * groups; i++) mask.push_back(mask_of(keep));
        for (int64_t i = 0; i < experts * rows * groups * keep; i++)
            values.push_back(number<Value>());
        for (int64_t row = 0; row < experts * rows; row++) {
            for (int64_t i = drawn(0, 2); i > 0; i--) {
                columns.push_back(static_cast<int16_t>(drawn(0, groups * sparse::GROUP - 1)));
                rest.push_back(number<Value>());
            }
            starts.push_back(static_cast<int64_t>(columns.size()));
        }
        values.shrink_to_fit();
        mask.shrink_to_fit();
        columns.shrink_to_fit();
        rest.shrink_to_fit();
    }

    sparse::Projection<Value> view(bool overflow) const {
        sparse::Overflow<Value> listed;
        if (overflow) listed = {starts.data(), columns.data(), nullptr, rest.data()};
        return {values.data(), mask.data(), rows, groups, keep, listed, scales.told};
    }
};

template <class Weight, class Value = Weight>
int compare() {
    const int64_t experts = drawn(1, 3), groups = drawn(1, 3);
    // Blocks enough for several in a panel, and tokens enough for more than are held, now and then.
    const int64_t hidden = drawn(0, 7) ? drawn(1, 2) : 35;
    const int64_t tokens = drawn(0, 3) ? drawn(0, 9) : drawn(30, 80), top_k = drawn(1, 2), width = groups * sparse::GROUP;
    const int64_t keep = drawn(1, sparse::GROUP - 1);
    const Projection<Weight> gate_up(experts, 2, 2 * hidden * sparse::GROUP, groups, keep);
    const Projection<Weight> down(experts, 1, width, hidden, keep);
    std::vector<Value> x, out(tokens * width), other(tokens * width);
    for (int64_t i = 0; i < tokens * width; i++) x.push_back(number<Value>());
    std::vector<float> weights(tokens * top_k, 0.5f);
    std::vector<int32_t> ids, orders;
    for (int64_t i = 0; i < tokens * top_k; i++)
        ids.push_back(static_cast<int32_t>(drawn(-1, experts - 1)));
    for (int64_t i = 0; i < experts * width; i++)
        orders.push_back(static_cast<int32_t>(drawn(0, width - 1)));
    const bool overflow = drawn(0, 1), ordered = drawn(0, 1);
    sparse::Step<Weight, Value> step{gate_up.view(overflow), down.view(overflow), x.data(), weights.data(),
                             ids.data(), ordered ? orders.data() : nullptr, out.data(), tokens,
                             top_k, experts, width, hidden * sparse::GROUP, sparse::activate<sparse::silu>};
    sparse::run_on("plain", step, 2);
    float largest = 0.0f;
    for (const Value one : out) largest = std::max(largest, std::fabs(sparse::to_float(one)));
    int steps = 0;
    for (const auto& isa : sparse::instruction_sets()) {
        step.out = other.data();
        sparse::run_on(isa, step, 2);
        for (size_t i = 0; i < out.size(); i++) {
            const float left = sparse::to_float(out[i]), right = sparse::to_float(other[i]);
            // Sums cancel, and one of them is of hidden values in half precision.
            if (std::fabs(left - right) > 0.02f * largest) {
                std::fprintf(stderr, "%s gives %g, plain %g\n", isa.c_str(), right, left);
                std::exit(1);
            }
        }
        steps++;
    }
    return steps;
}

}  // namespace

int main() {
    int steps = 0;
    for (int round = 0; round < 60; round++)
        steps += compare<sparse::Bfloat16>() + compare<sparse::Float16>() + compare<float>() +
                 compare<sparse::Float8, sparse::Bfloat16>() + compare<sparse::Float8, float>();
    std::printf("%d\n", steps);
}
