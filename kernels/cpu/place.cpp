// What comes between the projection of queries, keys and values and attention: norms, rotation, the write to memory.

#include <algorithm>
#include <cfloat>
#include <cmath>

#include "cpu.h"

namespace hatchway {

namespace {

constexpr int LANES = 8;

void norm(float* x, const float* weight, int64_t width, float eps) {
    v8f squares{};
    for (int64_t i = 0; i < width; i += LANES) {
        const v8f part = load<v8f>(x + i);
        squares = fma(part, part, squares);
    }
    const v8f factor = splat(1.0f / sqrtf(sum(squares) / static_cast<float>(width) + eps));
    for (int64_t i = 0; i < width; i += LANES) {
        store(x + i, load<v8f>(weight + i) * (load<v8f>(x + i) * factor));
    }
}

// Element i with element i + d/2.
void turn(float* x, const float* cos, const float* sin, int64_t width) {
    const int64_t pairs = width / 2;
    for (int64_t i = 0; i < pairs; i++) {
        const float first = x[i], second = x[i + pairs];
        x[i] = first * cos[i] - second * sin[i];
        x[i + pairs] = second * cos[i] + first * sin[i];
    }
}

// As `quantise_kv` of kernels/reference.py, bit by bit.
void write_int8(const KV& kv, int64_t cell, const float* x, int64_t width) {
    v8f most{};
    v8i broken{};
    for (int64_t i = 0; i < width; i += LANES) {
        const v8f part = load<v8f>(x + i);
        broken |= part != part;
        most = max(magnitude(part), most);
    }
    float scale = largest(most) / 127.0f;
    for (int lane = 0; lane < LANES; lane++) {
        if (broken[lane]) scale = NAN;
    }
    kv.scales[cell] = scale;
    int8_t* to = static_cast<int8_t*>(kv.memory) + cell * width;
    if (!(scale <= FLT_MAX)) {  // the scale says that the vector is broken
        std::fill(to, to + width, static_cast<int8_t>(0));
        return;
    }
    const v8f divisor = splat(std::max(scale, FLT_MIN));
    for (int64_t i = 0; i < width; i += LANES) {
        const v8f steps = round_even(load<v8f>(x + i) / divisor);
        const v8i whole = __builtin_convertvector(min(max(steps, splat(-127.0f)), splat(127.0f)), v8i);
        for (int lane = 0; lane < LANES; lane++) to[i + lane] = static_cast<int8_t>(whole[lane]);
    }
}

void write(const KV& kv, int64_t head, int64_t slot, const float* x, int64_t width) {
    const int64_t cell = head * kv.num_blocks * kv.block_size + slot;
    if (kv.type == KV_FP32) {
        memcpy(static_cast<float*>(kv.memory) + cell * width, x, sizeof(float) * width);
    } else if (kv.type == KV_FP16) {
        half* to = static_cast<half*>(kv.memory) + cell * width;
        for (int64_t i = 0; i < width; i += LANES) store_half(to + i, load<v8f>(x + i));
    } else {
        write_int8(kv, cell, x, width);
    }
}

}  // namespace

void place(float* qkv, const Batch& batch, const Heads& heads, const KV& kv, int64_t token) {
    const int64_t width = heads.width;
    const int64_t row = static_cast<int64_t>(batch.positions[token]) * (width / 2);
    for (int64_t h = 0; h < heads.queries + heads.keys; h++) {
        const float* weight = h < heads.queries ? heads.query_norm : heads.key_norm;
        if (weight != nullptr) norm(qkv + h * width, weight, width, heads.eps);
        if (heads.turns) turn(qkv + h * width, batch.cos + row, batch.sin + row, width);
    }
    const float* keys_values = qkv + heads.queries * width;
    for (int64_t h = 0; h < 2 * heads.keys; h++) write(kv, h, batch.slots[token], keys_values + h * width, width);
}

}  // namespace hatchway

// ---- for callers outside of a step

using namespace hatchway;

#define EXPORT extern "C" __attribute__((visibility("default")))

// Every token of a batch: qkv [T, (H + 2K) * d].
EXPORT void hatchway_place(float* qkv, const Batch* batch, const Heads* heads, const KV* kv) {
    const int64_t stride = static_cast<int64_t>(heads->queries + 2 * heads->keys) * heads->width;
    for (int64_t token = 0; token < batch->tokens; token++) place(qkv + token * stride, *batch, *heads, *kv, token);
}

// x [T, heads, d], cos and sin [T, d / 2].
EXPORT void hatchway_rope(const float* x, const float* cos, const float* sin, int64_t tokens, int64_t heads,
                          int64_t width, float* out) {
    memcpy(out, x, sizeof(float) * tokens * heads * width);
    for (int64_t row = 0; row < tokens * heads; row++) {
        turn(out + row * width, cos + row / heads * (width / 2), sin + row / heads * (width / 2), width);
    }
}
