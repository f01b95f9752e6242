// Quantised matrices times 16-bit activations, exact within a block, added up in fp32 from block to block.
//
// Each output is computed by the same operations in the same order in every variant and for every number of rows, so
// a row's result does not depend on what else is in the step. (BLAS is the exception: its order is its own.)
//
// With AVX2 two multiplications of 16 bits and their sum are one instruction, as fast as four of 8 bits; 16 bits of
// activations leave no error to be seen, 8 bits cost text. Weights are made ready in the first-level cache once for
// many rows; for few rows that is not worth it.

#include <cstdlib>
#include <vector>

#include "cpu.h"

#define UNROLL _Pragma("GCC unroll 16")

namespace hatchway {

namespace {

constexpr int NARROW_ROWS = 4;
constexpr int WIDE_ROWS = 6;       // rows x 16 outputs fill the registers
constexpr int PANEL = 576;         // columns made ready at once: 18 KB of first-level cache
constexpr int ROW_BLOCK = 192;     // activations that stay in the second-level cache while a tile passes over them
constexpr int BLAS_NUMBERS = 1 << 20;  // weights expanded at once
constexpr int64_t AHEAD = 4096;      // bytes that are fetched before they are wanted: the processor stops at each page
constexpr int PART = 2;  // items a thread gets of a product with one row block: long streams, and none waits long

Sgemm library_sgemm = nullptr;

// Numbers that a product of one tile gathers: two vectors of eight outputs for each row.
template <int ROWS>
using Sums = v8f[ROWS][2];

struct RowView {
    const int16_t* q;
    const float* scale;
    const float* sum;
    int64_t q_ld;
    int64_t ld;
};

template <int ROWS, bool LOW>
inline void add_block(Sums<ROWS>& sums, v8i (&dots)[ROWS][2], const RowView& x, int64_t b, const v8f (&scale)[2],
                      const v8f (&low)[2]) {
    UNROLL for (int r = 0; r < ROWS; r++) {
        const v8f factor = splat(x.scale[r * x.ld + b]), total = splat(x.sum[r * x.ld + b]);
        UNROLL for (int t = 0; t < 2; t++) {
            sums[r][t] = fma(to_float(dots[r][t]) * factor, scale[t], sums[r][t]);
            if (LOW) sums[r][t] = fma(low[t], total, sums[r][t]);
        }
    }
}

// ---- narrow: blocks of 32 columns, scales of 16 bits

template <int ROWS, bool FOUR, bool LOW>
void narrow(const Matrix& matrix, const uint8_t* block, const RowView& x, Sums<ROWS>& out) {
    constexpr int HALF = FOUR ? 128 : 256;
    Sums<ROWS> sums;
    UNROLL for (int r = 0; r < ROWS; r++) sums[r][0] = sums[r][1] = v8f{};
    const int64_t blocks = num_blocks(matrix), bytes = block_bytes(matrix);
    for (int64_t b = 0; b < blocks; b++, block += bytes) {
        v8i dots[ROWS][2] = {};
        const int16_t* q[ROWS];
        UNROLL for (int r = 0; r < ROWS; r++) {
            q[r] = x.q + r * x.q_ld + b * 32;
            asm("" : "+r"(q[r]));  // or the compiler keeps an address in memory for each row and column
        }
        // the last 0: a step reads it once, so it need not stay in the caches
        for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(block + AHEAD + at, 0, 0);
        if constexpr (FOUR) {
            UNROLL for (int v = 0; v < 4; v++) {
                v16u words[2] = {load<v16u>(block + 32 * v), load<v16u>(block + HALF + 32 * v)};
                UNROLL for (int i = 0; i < 4; i++) {
                    v16u low = words[0] >> (4 * i), high = words[1] >> (4 * i);
                    if (i < 3) low &= 15, high &= 15;
                    UNROLL for (int r = 0; r < ROWS; r++) {
                        const v16s pair = splat_pair(q[r] + 2 * (4 * v + i));
                        dots[r][0] = add_pairs(dots[r][0], (v16s)low, pair);
                        dots[r][1] = add_pairs(dots[r][1], (v16s)high, pair);
                    }
                }
            }
        } else {
            for (int j = 0; j < 16; j++) {
                const int8_t* bytes_of_pair = reinterpret_cast<const int8_t*>(block) + 16 * j;
                const v16s low = widen(bytes_of_pair), high = widen(bytes_of_pair + HALF);
                UNROLL for (int r = 0; r < ROWS; r++) {
                    const v16s pair = splat_pair(q[r] + 2 * j);
                    dots[r][0] = add_pairs(dots[r][0], low, pair);
                    dots[r][1] = add_pairs(dots[r][1], high, pair);
                }
            }
        }
        const half* at = reinterpret_cast<const half*>(block + 2 * HALF);
        const v8f scale[2] = {load_half(at), load_half(at + 8)};
        v8f lowest[2] = {};
        if (LOW) {
            UNROLL for (int t = 0; t < 2; t++) {
                lowest[t] = scale[t] * splat(matrix.offset);
                if (matrix.has_minimum) lowest[t] += load_half(at + TILE + 8 * t);
            }
        }
        add_block<ROWS, LOW>(sums, dots, x, b, scale, lowest);
    }
    UNROLL for (int r = 0; r < ROWS; r++) out[r][0] = sums[r][0], out[r][1] = sums[r][1];
}

template <int ROWS>
void narrow_any(const Matrix& matrix, const uint8_t* tile, const RowView& x, Sums<ROWS>& sums) {
    const bool low = matrix.has_minimum || matrix.offset != 0;
    if (matrix.kind == CODES4) {
        low ? narrow<ROWS, true, true>(matrix, tile, x, sums) : narrow<ROWS, true, false>(matrix, tile, x, sums);
    } else {
        low ? narrow<ROWS, false, true>(matrix, tile, x, sums) : narrow<ROWS, false, false>(matrix, tile, x, sums);
    }
}

// ---- wide: a panel of columns made ready in a scratch

struct Scratch {
    int16_t* codes;  // [pairs of columns, 2 x 8 rows, 2]
    float* scales;   // [blocks, scales of 16 rows and lowest values of 16 rows]
    float* sums;     // [ROW_BLOCK, 16], between panels

    Scratch() {
        codes = allocate<int16_t>(TILE * PANEL);
        scales = allocate<float>(2 * TILE * PANEL / 16);
        sums = allocate<float>(TILE * ROW_BLOCK);
    }
    ~Scratch() {
        free(codes);
        free(scales);
        free(sums);
    }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;

    template <class T>
    static T* allocate(size_t count) {  // on cache lines: loads across their borders take twice the time
        void* found = aligned_alloc(64, (count * sizeof(T) + 63) / 64 * 64);
        if (found == nullptr) abort();
        return static_cast<T*>(found);
    }
};

void make_ready(const Matrix& matrix, const uint8_t* block, int64_t blocks, const Scratch& scratch) {
    const int span = matrix.span, half_codes = 8 * span * (matrix.kind == CODES4 ? 4 : 8) / 8;
    int16_t* codes = scratch.codes;
    for (int64_t b = 0; b < blocks; b++, block += block_bytes(matrix)) {
        read_scales(matrix, block, scratch.scales + 32 * b, scratch.scales + 32 * b + 16);
        if (matrix.kind == CODES4) {
            for (int v = 0; v < span / 8; v++) {
                const v16u low = load<v16u>(block + 32 * v), high = load<v16u>(block + half_codes + 32 * v);
                UNROLL for (int i = 0; i < 4; i++, codes += 32) {
                    store(codes, low >> (4 * i) & 15);
                    store(codes + 16, high >> (4 * i) & 15);
                }
            }
        } else {
            const int8_t* bytes = reinterpret_cast<const int8_t*>(block);
            for (int j = 0; j < span / 2; j++, codes += 32) {
                store(codes, widen(bytes + 16 * j));
                store(codes + 16, widen(bytes + half_codes + 16 * j));
            }
        }
    }
}

template <int ROWS, int SPAN, bool LOW>
void wide(const Scratch& scratch, int64_t first, int64_t blocks, const RowView& x, Sums<ROWS>& sums) {
    const int16_t* codes = scratch.codes;
    for (int64_t b = 0; b < blocks; b++) {
        const int16_t* q = x.q + (first + b) * SPAN;
        v8i dots[ROWS][2] = {};
        for (int j = 0; j < SPAN / 2; j++, codes += 32) {
            const v16s low = load<v16s>(codes), high = load<v16s>(codes + 16);
            UNROLL for (int r = 0; r < ROWS; r++) {
                const v16s pair = splat_pair(q + r * x.q_ld + 2 * j);
                dots[r][0] = add_pairs(dots[r][0], low, pair);
                dots[r][1] = add_pairs(dots[r][1], high, pair);
            }
        }
        const float* at = scratch.scales + 32 * b;
        const v8f scale[2] = {load<v8f>(at), load<v8f>(at + 8)};
        const v8f lowest[2] = {load<v8f>(at + 16), load<v8f>(at + 24)};
        add_block<ROWS, LOW>(sums, dots, x, first + b, scale, lowest);
    }
}

template <int ROWS>
void wide_any(const Matrix& matrix, const Scratch& scratch, int64_t first, int64_t blocks, const RowView& x,
              Sums<ROWS>& sums) {
    const bool low = matrix.has_minimum || matrix.offset != 0;
    if (matrix.span == 32) {
        low ? wide<ROWS, 32, true>(scratch, first, blocks, x, sums)
            : wide<ROWS, 32, false>(scratch, first, blocks, x, sums);
    } else {
        low ? wide<ROWS, 16, true>(scratch, first, blocks, x, sums)
            : wide<ROWS, 16, false>(scratch, first, blocks, x, sums);
    }
}

// ---- both

RowView view(const Blocks& blocks, int64_t row) {
    const int64_t q_ld = static_cast<int64_t>(blocks.blocks) * blocks.span;
    return {blocks.q + row * q_ld, blocks.scale + row * blocks.blocks, blocks.sum + row * blocks.blocks, q_ld,
            blocks.blocks};
}

// The outputs of a tile at the edge of a matrix.
template <int ROWS>
void finish_some(const Matrix& matrix, const Sums<ROWS>& sums, const Target& target, int64_t row, int64_t column) {
    for (int r = 0; r < ROWS; r++) {
        float* out = target.out + (row + r) * target.ld + column;
        for (int i = 0; i < matrix.rows - column; i++) {
            float one = sums[r][i / 8][i % 8];
            if (target.bias != nullptr) one += target.bias[column + i];
            out[i] = target.add ? out[i] + one : one;
        }
    }
}

template <int ROWS>
inline void finish(const Matrix& matrix, const Sums<ROWS>& sums, const Target& target, int64_t row, int64_t tile) {
    const int64_t column = tile * TILE;
    if (matrix.rows - column < TILE) return finish_some<ROWS>(matrix, sums, target, row, column);
    float* out = target.out + row * target.ld + column;
    UNROLL for (int r = 0; r < ROWS; r++, out += target.ld) {
        UNROLL for (int t = 0; t < 2; t++) {
            v8f value = sums[r][t];
            if (target.bias != nullptr) value += load<v8f>(target.bias + column + 8 * t);
            if (target.add) value += load<v8f>(out + 8 * t);
            store(out + 8 * t, value);
        }
    }
}

template <int ROWS>
void narrow_rows(const Matrix& matrix, const uint8_t* data, const Activations& x, const Target& target, int64_t row,
                 int64_t tile) {
    Sums<ROWS> sums;
    narrow_any<ROWS>(matrix, data, view(x.blocks, row), sums);
    finish<ROWS>(matrix, sums, target, row, tile);
}

template <int ROWS>
void wide_rows(const Matrix& matrix, const Scratch& scratch, int64_t first, int64_t blocks, const Activations& x,
               const Target& target, int64_t row, int64_t tile, float* between) {
    Sums<ROWS> sums;
    UNROLL for (int r = 0; r < ROWS; r++) {
        UNROLL for (int t = 0; t < 2; t++) sums[r][t] = first == 0 ? v8f{} : load<v8f>(between + r * TILE + 8 * t);
    }
    wide_any<ROWS>(matrix, scratch, first, blocks, view(x.blocks, row), sums);
    if (first + blocks == num_blocks(matrix)) return finish<ROWS>(matrix, sums, target, row, tile);
    UNROLL for (int r = 0; r < ROWS; r++) {
        UNROLL for (int t = 0; t < 2; t++) store(between + r * TILE + 8 * t, sums[r][t]);
    }
}

void multiply_narrow(const Matrix& matrix, const Activations& x, const Target& target, int64_t tile) {
    const uint8_t* data = static_cast<const uint8_t*>(matrix.data) + tile * tile_bytes(matrix);
    for (int64_t row = 0; row < x.count; row += NARROW_ROWS) {
        switch (x.count - row) {
            case 1: narrow_rows<1>(matrix, data, x, target, row, tile); break;
            case 2: narrow_rows<2>(matrix, data, x, target, row, tile); break;
            case 3: narrow_rows<3>(matrix, data, x, target, row, tile); break;
            default: narrow_rows<4>(matrix, data, x, target, row, tile);
        }
    }
}

void multiply_wide(const Matrix& matrix, const Activations& x, const Target& target, int64_t start, int64_t end,
                   int64_t tile) {
    thread_local Scratch scratch;
    const uint8_t* data = static_cast<const uint8_t*>(matrix.data) + tile * tile_bytes(matrix);
    const int64_t all = num_blocks(matrix), most = PANEL / matrix.span;
    const int64_t panels = (all + most - 1) / most, step = (all + panels - 1) / panels;
    for (int64_t first = 0; first < all; first += step) {
        const int64_t blocks = all - first < step ? all - first : step;
        make_ready(matrix, data + first * block_bytes(matrix), blocks, scratch);
        for (int64_t row = start; row < end; row += WIDE_ROWS) {
            float* between = scratch.sums + (row - start) * TILE;
#define HATCHWAY_ROWS(N) wide_rows<N>(matrix, scratch, first, blocks, x, target, row, tile, between)
            switch (end - row) {
                case 1: HATCHWAY_ROWS(1); break;
                case 2: HATCHWAY_ROWS(2); break;
                case 3: HATCHWAY_ROWS(3); break;
                case 4: HATCHWAY_ROWS(4); break;
                case 5: HATCHWAY_ROWS(5); break;
                default: HATCHWAY_ROWS(6);
            }
#undef HATCHWAY_ROWS
        }
    }
}

// fp32 matrices, few rows: dot products of eight lanes, the same for each row.
void multiply_floats(const Matrix& matrix, const Activations& x, const Target& target, int64_t tile) {
    const int32_t columns = matrix.columns;
    const int64_t last = (tile + 1) * TILE < matrix.rows ? (tile + 1) * TILE : matrix.rows;
    for (int64_t n = tile * TILE; n < last; n++) {
        const float* weight = static_cast<const float*>(matrix.data) + n * columns;
        for (int64_t row = 0; row < x.count; row++) {
            const float* in = x.rows + row * x.ld;
            v8f first = {}, second = {};
            int32_t k = 0;
            for (; k + 16 <= columns; k += 16) {
                first = fma(load<v8f>(weight + k), load<v8f>(in + k), first);
                second = fma(load<v8f>(weight + k + 8), load<v8f>(in + k + 8), second);
            }
            float total = sum(first + second);
            for (; k < columns; k++) total += weight[k] * in[k];
            if (target.bias != nullptr) total += target.bias[n];
            float& out = target.out[row * target.ld + n];
            out = target.add ? out + total : total;
        }
    }
}

// All of it, expanded part by part and given to the library's product of fp32 matrices (column-major).
void multiply_blas(const Matrix& matrix, const Activations& x, const Target& target) {
    const int columns = matrix.columns, count = static_cast<int>(x.count);
    const int x_ld = static_cast<int>(x.ld), out_ld = static_cast<int>(target.ld);
    const float one = 1.0f, beta = target.add ? 1.0f : 0.0f;
    const int64_t most = matrix.kind == FP32 || columns > BLAS_NUMBERS ? matrix.rows : BLAS_NUMBERS / columns;
    std::vector<float> expanded;
    for (int64_t start = 0; start < matrix.rows; start += most) {
        const int rows = static_cast<int>(matrix.rows - start < most ? matrix.rows - start : most);
        const float* weights = static_cast<const float*>(matrix.data) + start * columns;
        if (matrix.kind != FP32) {
            expanded.resize(static_cast<size_t>(rows) * columns);
            for (int r = 0; r < rows; r++) expand_row(matrix, start + r, expanded.data() + static_cast<int64_t>(r) * columns);
            weights = expanded.data();
        }
        library_sgemm("T", "N", &rows, &count, &columns, &one, weights, &columns, x.rows, &x_ld, &beta,
                      target.out + start, &out_ld);
    }
    if (target.bias == nullptr) return;
    for (int64_t row = 0; row < x.count; row++) {
        for (int64_t n = 0; n < matrix.rows; n++) target.out[row * target.ld + n] += target.bias[n];
    }
}

int64_t row_blocks(int64_t rows) { return (rows + ROW_BLOCK - 1) / ROW_BLOCK; }

}  // namespace

void set_sgemm(Sgemm sgemm) { library_sgemm = sgemm; }

int size_of(int64_t rows) {
    int size = 0;
    while (size < SIZES - 1 && (int64_t{1} << size) < rows) size++;
    return size;
}

bool has_variant(const Matrix& matrix, Variant variant) {
    if (variant == BLAS) return library_sgemm != nullptr;
    if (variant == WIDE) return matrix.kind != FP32;
    return variant == NARROW && (matrix.kind == FP32 || (matrix.span == 32 && matrix.scale_bytes == 2));
}

Variant variant_of(const Matrix& matrix, int64_t rows) {
    const auto chosen = static_cast<Variant>(matrix.variants[size_of(rows)]);
    if (has_variant(matrix, chosen)) return chosen;
    return matrix.kind == FP32 ? NARROW : WIDE;
}

int64_t product_items(const Matrix& matrix, int64_t rows, Variant variant, int threads) {
    if (rows == 0) return 0;
    if (variant == BLAS) return 1;
    const int64_t tiles = num_tiles(matrix);
    if (variant == WIDE && rows > WIDE_ROWS) return tiles * row_blocks(rows);
    return tiles < PART * threads ? tiles : PART * threads;
}

void multiply(const Matrix& matrix, const Activations& x, const Target& target, Variant variant, int64_t item,
              int threads) {
    if (variant == BLAS) return multiply_blas(matrix, x, target);
    const int64_t tiles = num_tiles(matrix), items = product_items(matrix, x.count, variant, threads);
    if (variant == WIDE && x.count > WIDE_ROWS) {
        const int64_t start = item / tiles * ROW_BLOCK;
        const int64_t end = start + ROW_BLOCK < x.count ? start + ROW_BLOCK : x.count;
        return multiply_wide(matrix, x, target, start, end, item % tiles);
    }
    for (int64_t tile = item * tiles / items; tile < (item + 1) * tiles / items; tile++) {
        if (matrix.kind == FP32) multiply_floats(matrix, x, target, tile);
        else if (variant == NARROW) multiply_narrow(matrix, x, target, tile);
        else multiply_wide(matrix, x, target, 0, x.count, tile);
    }
}

}  // namespace hatchway
