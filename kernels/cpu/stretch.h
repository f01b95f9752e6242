// What rows of queries have from one stretch of positions: scores, their softmax, values mixed by it.
//
// Every sum is taken in an order that the places alone decide, in both ways of reading: straight from memory, for few
// rows, with the elements of a head in lanes; or expanded to fp32 once, for many rows, with positions in lanes. A score
// is the sum of eight sums, of the elements 0, 8, 16, ..., of 1, 9, ..., and so on; values are added one by one.
#pragma once

#include <algorithm>
#include <cfloat>
#include <cmath>

#include "cpu.h"

namespace hatchway {
namespace {

constexpr int STRETCH = 64;  // positions
constexpr int LANES = 8;
constexpr int BLOCK = 6;  // rows that share what is loaded: 6 x 2 vectors of sums, of 16 registers

// ---- keys and values

// Eight elements of the key or value in a cell, which is a place for one vector: [2K, blocks, block size] of them.
template <int TYPE>
v8f read(const KV& kv, int64_t cell, int64_t width, int64_t i);

template <>
inline v8f read<KV_FP32>(const KV& kv, int64_t cell, int64_t width, int64_t i) {
    return load<v8f>(static_cast<const float*>(kv.memory) + cell * width + i);
}

template <>
inline v8f read<KV_FP16>(const KV& kv, int64_t cell, int64_t width, int64_t i) {
    return load_half(static_cast<const half*>(kv.memory) + cell * width + i);
}

template <>
inline v8f read<KV_INT8>(const KV& kv, int64_t cell, int64_t width, int64_t i) {
    return load_bytes(static_cast<const int8_t*>(kv.memory) + cell * width + i) * splat(kv.scales[cell]);
}

// Rows of an 8 x 8 square become its columns.
inline void transpose(v8f (&x)[LANES]) {
    v8f a[LANES], b[LANES];
    for (int i = 0; i < LANES; i += 2) {
        a[i] = __builtin_shufflevector(x[i], x[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
        a[i + 1] = __builtin_shufflevector(x[i], x[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
    }
    for (int i = 0; i < LANES; i += 4) {
        for (int j = 0; j < 2; j++) {
            b[i + 2 * j] = __builtin_shufflevector(a[i + j], a[i + j + 2], 0, 1, 8, 9, 4, 5, 12, 13);
            b[i + 2 * j + 1] = __builtin_shufflevector(a[i + j], a[i + j + 2], 2, 3, 10, 11, 6, 7, 14, 15);
        }
    }
    for (int i = 0; i < 4; i++) {
        x[i] = __builtin_shufflevector(b[i], b[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
        x[i + 4] = __builtin_shufflevector(b[i], b[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
    }
}

// The lines of memory that eight vectors lie on, which are wanted in a moment.
template <int TYPE>
inline void fetch_panel(const KV& kv, int64_t base, const int64_t* cells, int64_t width) {
    constexpr int64_t bytes = TYPE == KV_FP32 ? 4 : TYPE == KV_FP16 ? 2 : 1;
    for (int j = 0; j < LANES; j++) {
        const char* vector = static_cast<const char*>(kv.memory) + (base + cells[j]) * width * bytes;
        for (int64_t at = 0; at < width * bytes; at += 64) __builtin_prefetch(vector + at);
    }
}

// Where the keys and values of a stretch lie. Those of the next are on the way to the cache meanwhile: a decoding
// sequence waits for memory, not for arithmetic.
template <int TYPE>
struct Paged {
    const KV& kv;
    int64_t width;
    int64_t keys, values;  // the first cell of the head
    const int64_t* cells;  // of the positions
    const int64_t* next;   // of the stretch that is read after this one
    int64_t num_next;

    v8f key(int64_t j, int64_t i) const { return read<TYPE>(kv, keys + cells[j], width, i); }
    v8f value(int64_t j, int64_t i) const { return read<TYPE>(kv, values + cells[j], width, i); }

    // What is wanted soon after the keys of the panel at j.
    void fetch(int64_t j) const {
        fetch_panel<TYPE>(kv, values, cells + j, width);
        if (j < num_next) fetch_panel<TYPE>(kv, keys, next + j, width);
    }
};

// The same in fp32. A panel is the keys of eight positions: [8, d / 8, position], element 8 m + l at [l, m].
struct Expanded {
    int64_t width;
    float* keys;    // [STRETCH / 8] panels
    float* values;  // [STRETCH, d]

    v8f value(int64_t j, int64_t i) const { return load<v8f>(values + j * width + i); }
};

// Positions first .. count - 1, first a multiple of eight.
template <int TYPE>
void expand(const Paged<TYPE>& paged, int64_t first, int64_t count, const Expanded& out) {
    const int64_t width = paged.width, steps = width / LANES;
    for (int64_t at = first; at < count; at += LANES) {
        paged.fetch(at);
        float* panel = out.keys + at * width;
        for (int64_t m = 0; m < steps; m++) {
            v8f square[LANES];
            for (int j = 0; j < LANES; j++) square[j] = paged.key(at + j, m * LANES);
            transpose(square);
            for (int l = 0; l < LANES; l++) store(panel + (l * steps + m) * LANES, square[l]);
        }
    }
    for (int64_t j = first; j < count; j++) {
        for (int64_t i = 0; i < width; i += LANES) store(out.values + j * width + i, paged.value(j, i));
    }
}

// ---- scores

// How many vectors of sums each of R rows has at a time: enough to hide the latency, few enough for the registers.
constexpr int columns(int rows) { return rows == 1 ? 8 : rows <= 3 ? 4 : 2; }

// scores [R, STRETCH] of the panels first .. end - 1.
template <int R, int TYPE>
void score(const Paged<TYPE>& from, const float* query, int64_t first, int64_t end, float* scores) {
    const int64_t width = from.width;
    for (int64_t at = first * LANES; at < end * LANES; at += LANES) {
        from.fetch(at);
        v8f sums[R][LANES];
        constexpr int KEYS = R == 1 ? 4 : 2;  // at a time, for what is loaded of the query
        for (int j = 0; j < LANES; j += KEYS) {
            v8f part[R][KEYS] = {};
            for (int64_t i = 0; i < width; i += LANES) {
                v8f key[KEYS];
                for (int k = 0; k < KEYS; k++) key[k] = from.key(at + j + k, i);
                for (int r = 0; r < R; r++) {
                    const v8f x = load<v8f>(query + r * width + i);
                    for (int k = 0; k < KEYS; k++) part[r][k] = fma(x, key[k], part[r][k]);
                }
            }
            for (int r = 0; r < R; r++) {
                for (int k = 0; k < KEYS; k++) sums[r][j + k] = part[r][k];
            }
        }
        for (int r = 0; r < R; r++) {
            transpose(sums[r]);
            v8f total = sums[r][0];
            for (int l = 1; l < LANES; l++) total += sums[r][l];
            store(scores + r * STRETCH + at, total);
        }
    }
}

template <int R, int C>
void score_panels(const float* query, const float* keys, int64_t width, float* scores) {
    const int64_t steps = width / LANES;
    for (int l = 0; l < LANES; l++) {
        v8f sums[R][C] = {};
        for (int64_t m = 0; m < steps; m++) {
            v8f key[C];
            for (int c = 0; c < C; c++) key[c] = load<v8f>(keys + (c * width + l * steps + m) * LANES);
            for (int r = 0; r < R; r++) {
                const v8f x = splat(query[r * width + m * LANES + l]);
                for (int c = 0; c < C; c++) sums[r][c] = fma(x, key[c], sums[r][c]);
            }
        }
        for (int r = 0; r < R; r++) {
            for (int c = 0; c < C; c++) {
                float* to = scores + r * STRETCH + c * LANES;
                store(to, l == 0 ? sums[r][c] : load<v8f>(to) + sums[r][c]);
            }
        }
    }
}

template <int R>
void score(const Expanded& from, const float* query, int64_t first, int64_t end, float* scores) {
    constexpr int C = columns(R);
    int64_t panel = first;
    for (; panel + C <= end; panel += C) {
        score_panels<R, C>(query, from.keys + panel * LANES * from.width, from.width, scores + panel * LANES);
    }
    for (; panel < end; panel++) {
        score_panels<R, 1>(query, from.keys + panel * LANES * from.width, from.width, scores + panel * LANES);
    }
}

// Positions of a stretch that a row sees: first .. end - 1, counted from the stretch's first.
struct Range {
    int first, end;
};

// e^x for what is not above 0, as close as `exponential` and in fewer steps; 0 below -87.
inline v8f decay(v8f x) {
    const v8f low = splat(-87.0f), magic = splat(12582912.0f);  // 1.5 * 2^23: n stands in the lowest bits of the sum
    const v8f inside = max(low, x);  // in this order what is no number stays so
    const v8f shifted = fma(inside, splat(1.44269504f), magic);
    const v8f n = shifted - magic;
    const v8f r = fma(n, splat(2.12194440e-4f), fma(n, splat(-0.693359375f), inside));
    v8f p = fma(splat(1.0f / 720), r, splat(1.0f / 120));
    p = fma(p, r, splat(1.0f / 24));
    p = fma(p, r, splat(1.0f / 6));
    p = fma(p, r, splat(0.5f));
    p = fma(p, r, splat(1.0f));
    p = fma(p, r, splat(1.0f));
    const v8f out = p * (v8f)(((v8i)shifted + 127) << 23);
    return x < low ? v8f{} : out;
}

inline float largest_of(v8f x) {
    x = max(x, __builtin_shufflevector(x, x, 4, 5, 6, 7, 0, 1, 2, 3));
    x = max(x, __builtin_shufflevector(x, x, 2, 3, 0, 1, 6, 7, 4, 5));
    x = max(x, __builtin_shufflevector(x, x, 1, 0, 3, 2, 5, 4, 7, 6));
    return x[0];
}

// Scores become weights: exponentials relative to the largest. Only those in the vectors that `seen` touches are
// written; what lies beside it there becomes 0.
inline void soften(float* scores, Range seen, float* top, float* total) {
    const int first = seen.first / LANES * LANES, end = (seen.end + LANES - 1) / LANES * LANES;
    for (int j = first; j < seen.first; j++) scores[j] = -INFINITY;
    for (int j = seen.end; j < end; j++) scores[j] = -INFINITY;
    v8f most = splat(-FLT_MAX);  // where all are minus infinity their weights are 0, and no NaN
    for (int j = first; j < end; j += LANES) most = max(load<v8f>(scores + j), most);
    *top = largest_of(most);
    v8f weights{};
    for (int j = first; j < end; j += LANES) {
        const v8f weight = decay(load<v8f>(scores + j) - splat(*top));
        store(scores + j, weight);
        weights += weight;
    }
    *total = sum(weights);
}

// ---- values

// What a row has so far, or has from one stretch: d sums of values, then the largest score that their weights are
// relative to, then the sum of the weights.
inline int64_t result_size(int64_t width) { return width + LANES; }

// C vectors, from element i, of each of R results gain the values first .. end - 1, weighted.
template <int R, int C, class From>
void mix_columns(const From& from, const float* weights, int first, int end, int64_t i, float* results) {
    const int64_t size = result_size(from.width);
    v8f sums[R][C];
    for (int r = 0; r < R; r++) {
        for (int c = 0; c < C; c++) sums[r][c] = load<v8f>(results + r * size + i + c * LANES);
    }
    for (int j = first; j < end; j++) {
        if constexpr (R < C) {  // what is fewer stays in registers
            v8f weight[R];
            for (int r = 0; r < R; r++) weight[r] = splat(weights[r * STRETCH + j]);
            for (int c = 0; c < C; c++) {
                const v8f value = from.value(j, i + c * LANES);
                for (int r = 0; r < R; r++) sums[r][c] = fma(weight[r], value, sums[r][c]);
            }
        } else {
            v8f value[C];
            for (int c = 0; c < C; c++) value[c] = from.value(j, i + c * LANES);
            for (int r = 0; r < R; r++) {
                const v8f weight = splat(weights[r * STRETCH + j]);
                for (int c = 0; c < C; c++) sums[r][c] = fma(weight, value[c], sums[r][c]);
            }
        }
    }
    for (int r = 0; r < R; r++) {
        for (int c = 0; c < C; c++) store(results + r * size + i + c * LANES, sums[r][c]);
    }
}

template <int R, class From>
void mix(const From& from, const float* weights, int first, int end, float* results) {
    if (first >= end) return;
    constexpr int C = columns(R);
    int64_t i = 0;
    for (; i + C * LANES <= from.width; i += C * LANES) mix_columns<R, C>(from, weights, first, end, i, results);
    for (; i < from.width; i += LANES) mix_columns<R, 1>(from, weights, first, end, i, results);
}

// ---- all of it

// R rows over one stretch, of which each sees at least one position.
template <int R, class From>
void read_rows(const From& from, const float* query, const Range* seen, float* scores, float* results) {
    Range any = seen[0], all = seen[0];
    for (int r = 1; r < R; r++) {
        any = {std::min(any.first, seen[r].first), std::max(any.end, seen[r].end)};
        all = {std::max(all.first, seen[r].first), std::min(all.end, seen[r].end)};
    }
    const int64_t width = from.width, size = result_size(width);
    score<R>(from, query, any.first / LANES, (any.end + LANES - 1) / LANES, scores);
    for (int r = 0; r < R; r++) {
        float* row = results + r * size;
        soften(scores + r * STRETCH, seen[r], row + width, row + width + 1);
        std::fill(row, row + width, 0.0f);
        // What only some rows see goes row by row: a value that a row does not see may be no number, and 0 times that
        // is none either.
        mix<1>(from, scores + r * STRETCH, seen[r].first, std::min(all.first, seen[r].end), row);
    }
    mix<R>(from, scores, all.first, all.end, results);
    for (int r = 0; r < R; r++) {
        const int first = std::max({all.first, all.end, seen[r].first});
        mix<1>(from, scores + r * STRETCH, first, seen[r].end, results + r * size);
    }
}

template <class From>
void read_stretch(int64_t rows, const From& from, const float* query, const Range* seen, float* scores,
                  float* results) {
    static_assert(BLOCK == 6, "a case for each number of rows");
    switch (rows) {
        case 1: return read_rows<1>(from, query, seen, scores, results);
        case 2: return read_rows<2>(from, query, seen, scores, results);
        case 3: return read_rows<3>(from, query, seen, scores, results);
        case 4: return read_rows<4>(from, query, seen, scores, results);
        case 5: return read_rows<5>(from, query, seen, scores, results);
        default: return read_rows<6>(from, query, seen, scores, results);
    }
}

// A block of rows: what they have from the stretches before, and `added` from one more.
inline void fold(int64_t rows, int64_t width, const float* added, float* results) {
    static_assert(BLOCK <= LANES, "a vector holds a power of each row");
    const int64_t size = result_size(width);
    float old_power[LANES] = {}, new_power[LANES] = {};
    for (int64_t r = 0; r < rows; r++) {
        const float old_top = results[r * size + width], new_top = added[r * size + width];
        const float top = std::max(old_top, new_top);
        old_power[r] = old_top - top;
        new_power[r] = new_top - top;
        results[r * size + width] = top;
    }
    const v8f old_factors = decay(load<v8f>(old_power)), new_factors = decay(load<v8f>(new_power));
    for (int64_t r = 0; r < rows; r++) {
        float* row = results + r * size;
        const float* more = added + r * size;
        const v8f old_factor = splat(old_factors[r]), new_factor = splat(new_factors[r]);
        for (int64_t i = 0; i < width; i += LANES) {
            store(row + i, fma(load<v8f>(row + i), old_factor, load<v8f>(more + i) * new_factor));
        }
        row[width + 1] = fma(splat(row[width + 1]), old_factor, splat(more[width + 1]) * new_factor)[0];
    }
}

}  // namespace
}  // namespace hatchway
