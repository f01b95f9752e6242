// Rows of activations: norms, the gated feed-forward, and their 16-bit form.

#include <cmath>

#include "cpu.h"

namespace hatchway {

namespace {

constexpr float TOP = 32767.0f;
constexpr float SMALLEST = 1e-30f;  // blocks without a larger number are taken as zeros; 1 / x is finite above it

// Eight numbers from x, zeros where the row has ended.
inline v8f load_some(const float* x, int64_t left) {
    if (left >= 8) return load<v8f>(x);
    float some[8] = {};
    for (int i = 0; i < left; i++) some[i] = x[i];
    return load<v8f>(some);
}

inline int32_t largest_bits(v8i x) {
    int32_t out = x[0];
    for (int i = 1; i < 8; i++) out = x[i] > out ? x[i] : out;
    return out;
}

}  // namespace

void quantise(const float* x, int32_t columns, const Blocks& out, int64_t row) {
    const int span = out.span, vectors = span / 8;
    int16_t* q = out.q + row * out.blocks * span;
    for (int64_t b = 0; b < out.blocks; b++, q += span) {
        v8f part[4];
        v8i most = {};
        for (int v = 0; v < vectors; v++) {
            part[v] = load_some(x + b * span + 8 * v, columns - b * span - 8 * v);
            const v8i bits = (v8i)magnitude(part[v]);  // of magnitudes, the bits are in the order of the numbers
            most = bits > most ? bits : most;
        }
        const int32_t bits = largest_bits(most);
        float top;
        memcpy(&top, &bits, 4);
        float scale = 0, inverse = 0;
        if (bits >= 0x7f800000) {
            scale = NAN;
        } else if (top > SMALLEST) {
            scale = top / TOP;
            inverse = TOP / top;
        }
        v8f total = {};
        for (int v = 0; v < vectors; v++) {
            const v8f near = inverse > 0 ? round_even(part[v] * splat(inverse)) : v8f{};
            total += near;
            store(q + 8 * v, __builtin_convertvector(__builtin_convertvector(near, v8i), v8s));
        }
        out.scale[row * out.blocks + b] = scale;
        out.sum[row * out.blocks + b] = sum(total) * scale;  // of whole numbers: exact up to the product
    }
}

void rms_norm(const float* x, const float* weight, float* out, int32_t width, float eps) {
    v8f first = {}, second = {};
    int32_t i = 0;
    for (; i + 16 <= width; i += 16) {
        const v8f a = load<v8f>(x + i), b = load<v8f>(x + i + 8);
        first = fma(a, a, first);
        second = fma(b, b, second);
    }
    float squares = sum(first + second);
    for (; i < width; i++) squares += x[i] * x[i];
    const float inverse = 1.0f / std::sqrt(squares / static_cast<float>(width) + eps);
    for (i = 0; i + 8 <= width; i += 8) store(out + i, load<v8f>(weight + i) * (load<v8f>(x + i) * splat(inverse)));
    for (; i < width; i++) out[i] = weight[i] * (x[i] * inverse);
}

void swiglu(const float* gate_up, float* out, int32_t width) {
    for (int32_t i = 0; i < width; i += 8) {
        const v8f gate = load_some(gate_up + i, width - i), up = load_some(gate_up + width + i, width - i);
        const v8f mixed = gate / (splat(1.0f) + exponential(-gate)) * up;
        if (i + 8 <= width) {
            store(out + i, mixed);
        } else {
            for (int32_t lane = 0; i + lane < width; lane++) out[i + lane] = mixed[lane];
        }
    }
}

}  // namespace hatchway
