// What the files of this library share: the team of threads, matrices, activations, the memory of keys and values.
//
// Dim letters as in kernels/reference.py: T tokens, D model width, H query heads, K key/value heads, d head width.
#pragma once

#include <atomic>
#include <cstdint>

#include "simd.h"

namespace hatchway {

// ---- threads.cpp: a fixed team. The thread that calls `run` is its number 0.

struct Team;

Team* start_team(int threads);
void end_team(Team* team);
int team_size(const Team* team);
// body(context, thread) on every thread of the team; back when all have returned.
void run(Team* team, void (*body)(void* context, int thread), void* context);
// Inside a body: until every thread of the team is here. What was written before is seen by all.
void meet(Team* team);

// Work that threads take from each other, item by item or some at once. Set it back before a meeting, use it after.
struct Counter {
    std::atomic<int64_t> next{0};
    void reset() { next.store(0, std::memory_order_relaxed); }
    int64_t take(int64_t count = 1) { return next.fetch_add(count, std::memory_order_relaxed); }
};

// ---- pack.cpp: matrices as the products want them.

// Quantised matrices lie in tiles of 16 rows. A tile holds its blocks of `span` columns one after another; a block is
//   the codes of rows 0-7, then those of rows 8-15; of eight rows:
//     4 bits: words of 16 bits; word 16 v + 2 r + p holds of row r the columns 2 (4 v + i) + p, i = 0 .. 3, from its
//             lowest bits up: four shifts give the numbers that go with four pairs of activations
//     8 bits: bytes; byte 16 j + 2 r + p is row r, column 2 j + p
//   16 scales, then 16 minima where the matrix has them.
// A weight is (code + offset) * scale + minimum. Rows and columns beyond the matrix have the scale 0.
enum Kind : int32_t { FP32 = 0, CODES4 = 1, CODES8 = 2 };

constexpr int TILE = 16;
constexpr int SIZES = 9;  // 1, 2, 4, ..., 128, 256 and more rows of activations

// How a product is made.
enum Variant : uint8_t {
    NARROW = 0,  // codes straight from memory, for up to four rows at once
    WIDE = 1,    // codes of a tile made ready once, for many rows
    BLAS = 2,    // fp32 and the matrix product of a library
    VARIANTS = 3
};

struct Matrix {
    int32_t kind;
    int32_t rows;
    int32_t columns;
    int32_t span;         // 16 or 32
    int32_t scale_bytes;  // 2 or 4
    int32_t has_minimum;
    float offset;
    uint8_t variants[12];  // by number of activation rows, `size_of`; the last ones are unused
    const void* data;      // tiles, or fp32 [rows, columns]
};

int64_t block_bytes(const Matrix& matrix);
int64_t tile_bytes(const Matrix& matrix);
inline int64_t num_tiles(const Matrix& matrix) { return (matrix.rows + TILE - 1) / TILE; }
inline int64_t num_blocks(const Matrix& matrix) { return (matrix.columns + matrix.span - 1) / matrix.span; }
// Row `row` as fp32 [columns].
void expand_row(const Matrix& matrix, int64_t row, float* out);
// Scales and lowest values of a block as fp32: [16] and [16]; a weight is code * scale + low.
void read_scales(const Matrix& matrix, const uint8_t* block, float* scales, float* lows);

// ---- activations.cpp: rows of fp32, and the same as blocks of 16-bit numbers.

// Block b of a row is about q * scale[b], its sum about sum[b]. A block with a number that is not finite has a scale
// that is none, so that all it touches shows it.
struct Blocks {
    int16_t* q;    // [rows, blocks * span]
    float* scale;  // [rows, blocks]
    float* sum;    // [rows, blocks]
    int32_t span;
    int32_t blocks;
};

void quantise(const float* x, int32_t columns, const Blocks& out, int64_t row);
void rms_norm(const float* x, const float* weight, float* out, int32_t width, float eps);
// gate_up [2F] -> silu(gate) * up [F]
void swiglu(const float* gate_up, float* out, int32_t width);

// ---- products.cpp: matrices times activations.

struct Activations {
    const float* rows;  // [count, ld]; for FP32 matrices and BLAS
    int64_t ld;
    Blocks blocks;  // of the span of the matrix; q null where nothing is quantised
    int64_t count;
};

struct Target {
    float* out;         // row 0 of the activations, row 0 of the matrix
    int64_t ld;
    const float* bias;  // [rows of the matrix], or null
    bool add;           // to what is there
};

using Sgemm = void (*)(const char*, const char*, const int*, const int*, const int*, const float*, const float*,
                       const int*, const float*, const int*, const float*, float*, const int*);

int size_of(int64_t rows);  // index into `variants`
Variant variant_of(const Matrix& matrix, int64_t rows);
bool has_variant(const Matrix& matrix, Variant variant);
// The product is cut into items that threads take; BLAS is one item, for whoever takes it.
int64_t product_items(const Matrix& matrix, int64_t rows, Variant variant, int threads);
void multiply(const Matrix& matrix, const Activations& x, const Target& target, Variant variant, int64_t item,
              int threads);
void set_sgemm(Sgemm sgemm);

// ---- attention.cpp: keys and values, paged.

enum KVType : int32_t { KV_FP32 = 0, KV_FP16 = 1, KV_INT8 = 2 };

// One layer: [2K, blocks, block size, d], keys are heads 0 .. K-1 and values K .. 2K-1. int8 with one fp32 scale for
// each vector of d: [2K, blocks, block size].
struct KV {
    void* memory;
    float* scales;  // null unless int8
    int64_t num_blocks;
    int32_t block_size;
    int32_t type;
};

struct Heads {
    int32_t queries;   // H
    int32_t keys;      // K
    int32_t width;     // d, a multiple of 8, at most 256
    int32_t window;    // positions that a query sees; 0: all
    int32_t turns;     // whether queries and keys are turned (rope)
    float eps;         // of the norms of queries and keys
    const float* query_norm;  // [d]; null: none
    const float* key_norm;    // [d]; null: none
};

// The tokens of a step: those of each sequence lie one after another.
struct Batch {
    int32_t tokens;     // T
    int32_t sequences;  // S
    const int32_t* ids;        // [T]
    const int32_t* positions;  // [T]
    const int64_t* slots;      // [T], block * block size + offset
    const int32_t* starts;     // [S + 1]
    const int32_t* lengths;    // [S], positions filled after the step
    const int32_t* tables;     // blocks of all sequences, one after another
    const int32_t* table_starts;  // [S + 1], where each sequence's begin in `tables`
    const float* cos;   // [positions of the model, d / 2]
    const float* sin;
};

// Queries and keys of one token normed and turned in place, keys and values written to memory.
// qkv: the token's row [(H + 2K) * d].
void place(float* qkv, const Batch& batch, const Heads& heads, const KV& kv, int64_t token);

// What threads leave for each other when they share the keys of one sequence. Zero `done` when it is made; a step
// leaves it zero.
struct Parts {
    std::atomic<int32_t> done[256];
    float* results;
};

// Attention of the whole step is cut into items that threads take, in any order.
int64_t attention_items(const Batch& batch, const Heads& heads, int threads);
// Floats that a thread's scratch needs, for any item of such a step.
int64_t attention_scratch(const Batch& batch, const Heads& heads);
// Floats of `Parts.results` that a step needs.
int64_t attention_parts(const Batch& batch, const Heads& heads, int threads);
// query: rows of [H * d], `stride` floats from one to the next (of qkv: (H + 2K) * d), after `place`; mixed [T, H * d],
// whole when all items are done. A row's bits do not depend on the batch around it, nor on the number of threads.
void attend(const float* query, int64_t stride, float* mixed, const Batch& batch, const Heads& heads, const KV& kv,
            int64_t item, int threads, float* scratch, Parts& parts);

}  // namespace hatchway
