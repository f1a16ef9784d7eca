// A MoE block on packed experts, on a GPU: what gpu.py calls. A step is three launches (gate and up,
// down, sum), or four where pairs are sorted or inputs reordered before. Nothing waits for the host,
// nothing is allocated, and grids follow from sizes alone, so that a CUDA graph may hold a step.
#include "dense.cuh"
#include "gather.cuh"
#include "launch.cuh"
#include "pairs.cuh"

namespace packed {

template <class Number, int KEEP, int T>
KERNEL(GATHER_THREADS, 2) gather_kernel(CONSTANT Product a) {
    gather<Number, KEEP, T>(a);
}
template <class Number, int KEEP, int TOKEN_TILES>
KERNEL(TENSOR_THREADS, 2) tensor_kernel(CONSTANT Product a) {
    tensor<Number, KEEP, TOKEN_TILES>(a);
}
template <class Number, int TOKEN_TILES>
KERNEL(TENSOR_THREADS, 2) pairs_kernel(CONSTANT Product a) {
    tensor_pairs<Number, TOKEN_TILES>(a);
}
template <class Number>
KERNEL(256, 4) sum_kernel(CONSTANT Summing a) {
    sum<Number>(a);
}
// The last block sorts, each other block orders a row.
KERNEL(512, 1) sort_kernel(CONSTANT Sorting a) {
    if (blockIdx.x == gridDim.x - 1) sort_many(a);
    else order_row(a, blockIdx.x);
}
template <class Number, int KEEP>
KERNEL(DENSE_THREADS, 3) dense_kernel(CONSTANT Writing a) {
    write_dense<Number, KEEP>(a);
}
template <class Number>
KERNEL(DENSE_THREADS, 3) dense_pairs_kernel(CONSTANT Writing a) {
    write_pairs<Number>(a);
}

}  // namespace packed

using namespace packed;

enum Way { GATHER, TENSOR };

// One step of one layer. gpu.py has the same fields.
struct Step {
    Matrix gate_up, down;
    const uint16_t* x;       // [tokens, width]
    const float* weights;    // [tokens, top_k]
    const int32_t* ids;      // [tokens, top_k]
    const int32_t* orders;   // [experts, width] or null
    uint16_t* out;           // [tokens, width]
    uint16_t* hidden;        // [tokens * top_k, hidden]
    uint16_t* rows;          // [tokens * top_k, width]
    uint16_t* ordered;       // [tokens * top_k, width], where a launch reorders inputs
    int32_t* sorted;         // room for items
    int32_t tokens, top_k, experts;
    int32_t is_half;         // float16, else bfloat16
    int32_t activation;
    int32_t way;
    int32_t per_item;        // 1 or 2 to gather, 8 or 16 on tensor cores
    int32_t most_items;
};

static int few_bytes(const Product& a) {
    const int ints = 4 + a.most_items * (1 + a.per_item) + 2 * a.pairs;
    return a.sorted ? 0 : (ints * 4 + 15) / 16 * 16;
}

template <class Number, int KEEP>
static int multiply_kept(Product a, int way, void* stream) {
    const Device device = device_now();
    a.shared_x = few_bytes(a);
    if (way == GATHER) {
        const int shared = a.shared_x + a.matrix.across * UNIT_BYTES;
        const auto kernel = a.per_item == 1 ? gather_kernel<Number, KEEP, 1> : gather_kernel<Number, KEEP, 2>;
        return launch(kernel, device.blocks(shared, 2), GATHER_THREADS, shared, a, stream);
    }
    const int shared = a.shared_x + 2 * STRIP_BYTES + TENSOR_WARPS * a.per_item * 64;
    const auto kernel = a.per_item == 8 ? tensor_kernel<Number, KEEP, 1> : tensor_kernel<Number, KEEP, 2>;
    return launch(kernel, device.blocks(shared, 2), TENSOR_THREADS, shared, a, stream);
}

template <class Number>
static int multiply_pairs(Product a, void* stream) {
    a.shared_x = few_bytes(a);
    const int shared = a.shared_x + TENSOR_WARPS * a.per_item * 64;
    const auto kernel = a.per_item == 8 ? pairs_kernel<Number, 1> : pairs_kernel<Number, 2>;
    return launch(kernel, device_now().blocks(shared, 2), TENSOR_THREADS, shared, a, stream);
}

template <class Number>
static int multiply(const Product& a, int way, void* stream) {
    switch (a.matrix.keep) {
        case 0: return multiply_pairs<Number>(a, stream);
        case 8: return multiply_kept<Number, 8>(a, way, stream);
        case 16: return multiply_kept<Number, 16>(a, way, stream);
        case 24: return multiply_kept<Number, 24>(a, way, stream);
    }
    return -1;
}

static int sort_before(const Step& s, bool orders, void* stream) {
    const int pairs = s.tokens * s.top_k;
    const Sorting sorting = {s.ids,     s.sorted, s.x,       orders ? s.orders : nullptr,
                             s.ordered, pairs,    s.top_k,   s.experts,
                             s.gate_up.columns,   s.per_item, s.most_items};
    return launch(sort_kernel, orders ? pairs + 1 : 1, 512, s.experts * 8, sorting, stream);
}

// Values are read as Held, all else is Number's.
template <class Number, class Held>
static int run(const Step& s, void* stream) {
    const int pairs = s.tokens * s.top_k;
    const bool reorders = s.orders && s.way == TENSOR, sorts = reorders || pairs > FEW_PAIRS;
    if (sorts)
        if (int error = sort_before(s, reorders, stream)) return error;
    Product gate_up = {s.gate_up, reorders ? s.ordered : s.x, reorders ? nullptr : s.orders, nullptr,
                       s.hidden,  s.ids, sorts ? s.sorted : nullptr, pairs, reorders ? 1 : s.top_k,
                       s.experts, 1,     s.activation, s.per_item, s.most_items, 0};
    if (int error = multiply<Held>(gate_up, s.way, stream)) return error;
    Product down = {s.down,    s.hidden, nullptr, s.weights, s.rows, s.ids, sorts ? s.sorted : nullptr,
                    pairs,     1,        s.experts, 0,       s.activation, s.per_item, s.most_items, 0};
    if (int error = multiply<Held>(down, s.way, stream)) return error;
    const Summing summing = {(const u32*)s.rows, s.ids, (u32*)s.out, s.tokens, s.top_k, s.experts,
                             s.down.rows / 2};
    const int64_t threads = (int64_t)s.tokens * summing.words;
    const int blocks = device_now().multiprocessors * 4;
    return launch(sum_kernel<Number>, threads < 256LL * blocks ? (int)((threads + 255) / 256) : blocks,
                  256, 0, summing, stream);
}

// 0, or a CUDA error that leanmoe_packed_error puts into words.
extern "C" int leanmoe_packed_step(const Step* step, void* stream) {
    if (step->tokens == 0) return 0;
    if (step->gate_up.is_coded != step->down.is_coded) return -1;
    if (step->gate_up.is_coded)
        return step->is_half ? run<Float16, Coded<Float16>>(*step, stream)
                             : run<Bfloat16, Coded<Bfloat16>>(*step, stream);
    return step->is_half ? run<Float16, Float16>(*step, stream)
                         : run<Bfloat16, Bfloat16>(*step, stream);
}

template <class Held>
static int write_out(const Writing& a, void* stream) {
    const int blocks = device_now().multiprocessors * 3, threads = DENSE_THREADS;
    switch (a.matrix.keep) {
        case 0: return launch(dense_pairs_kernel<Held>, blocks, threads, 0, a, stream);
        case 8: return launch(dense_kernel<Held, 8>, blocks, threads, DENSE_SHARED, a, stream);
        case 16: return launch(dense_kernel<Held, 16>, blocks, threads, DENSE_SHARED, a, stream);
        case 24: return launch(dense_kernel<Held, 24>, blocks, threads, DENSE_SHARED, a, stream);
    }
    return -1;
}

extern "C" int leanmoe_packed_dense(const Writing* writing, void* stream) {
    if (writing->matrix.is_coded)
        return writing->is_half ? write_out<Coded<Float16>>(*writing, stream)
                                : write_out<Coded<Bfloat16>>(*writing, stream);
    // Words of two bytes are written as they are, whichever numbers they hold.
    return write_out<Bfloat16>(*writing, stream);
}

// Bytes of shared memory that a block may have on the current device.
extern "C" int leanmoe_packed_shared_bytes() { return device_now().shared_of_block; }
extern "C" const char* leanmoe_packed_error(int error) { return error_text(error); }
