// Vectors of eight 32-bit lanes, and the few operations on them that the kernels are written in.
//
// GCC's and Clang's vector extensions give arithmetic, comparison and loads on every machine; what they do not express
// (dot products of bytes, conversion of fp16) is here, once for each instruction set.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace hatchway {

typedef float v8f __attribute__((vector_size(32)));
typedef int32_t v8i __attribute__((vector_size(32)));
typedef int16_t v16s __attribute__((vector_size(32)));
typedef uint16_t v16u __attribute__((vector_size(32)));
typedef int16_t v8s __attribute__((vector_size(16)));
typedef uint16_t half;  // the bits of an IEEE fp16 number

template <class V>
static inline V load(const void* from) {
    V v;
    memcpy(&v, from, sizeof v);
    return v;
}

template <class V>
static inline void store(void* to, V v) {
    memcpy(to, &v, sizeof v);
}

#if defined(__ARM_NEON)
// Vectors of this processor are half as wide.
static inline float32x4_t low(v8f x) { return (float32x4_t)__builtin_shufflevector(x, x, 0, 1, 2, 3); }
static inline float32x4_t high(v8f x) { return (float32x4_t)__builtin_shufflevector(x, x, 4, 5, 6, 7); }

template <class V, class Part>
static inline V join(Part low, Part high) {
    V out;
    memcpy(&out, &low, sizeof low);
    memcpy(reinterpret_cast<char*>(&out) + sizeof low, &high, sizeof high);
    return out;
}
#endif

static inline v8f splat(float x) { return v8f{x, x, x, x, x, x, x, x}; }

static inline v8i splat_i(int32_t x) { return v8i{x, x, x, x, x, x, x, x}; }

// Two numbers next to each other, in every pair of lanes.
static inline v16s splat_pair(const int16_t* from) {
    int32_t word;
    memcpy(&word, from, 4);
    return (v16s)splat_i(word);
}

// Lane i: total + a[2i] * b[2i] + a[2i + 1] * b[2i + 1]. The barrier keeps the compiler from adding up in an order of
// its own, for which it would need more registers than there are.
static inline v8i add_pairs(v8i total, v16s a, v16s b) {
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
    total = (v8i)_mm256_dpwssd_epi32((__m256i)total, (__m256i)a, (__m256i)b);
#elif defined(__AVXVNNI__)
    total = (v8i)_mm256_dpwssd_avx_epi32((__m256i)total, (__m256i)a, (__m256i)b);
#elif defined(__AVX2__)
    total += (v8i)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined(__ARM_NEON)
    int16x8_t x[2], y[2];
    memcpy(x, &a, sizeof x);
    memcpy(y, &b, sizeof y);
    int32x4_t sums[2];
    for (int i = 0; i < 2; i++) {
        sums[i] = vpaddq_s32(vmull_s16(vget_low_s16(x[i]), vget_low_s16(y[i])), vmull_high_s16(x[i], y[i]));
    }
    total += join<v8i>(sums[0], sums[1]);
#else
    for (int i = 0; i < 8; i++) total[i] += a[2 * i] * b[2 * i] + a[2 * i + 1] * b[2 * i + 1];
#endif
#if defined(__AVX2__)
    asm("" : "+x"(total));
#endif
    return total;
}

// Sixteen bytes as numbers of 16 bits.
static inline v16s widen(const int8_t* from) {
#if defined(__AVX2__)
    return (v16s)_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)from));
#else
    typedef int8_t v16b __attribute__((vector_size(16)));
    return __builtin_convertvector(load<v16b>(from), v16s);
#endif
}

// a * b + c, rounded once.
static inline v8f fma(v8f a, v8f b, v8f c) {
#if defined(__FMA__)
    return (v8f)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__ARM_NEON)
    return join<v8f>(vfmaq_f32(low(c), low(a), low(b)), vfmaq_f32(high(c), high(a), high(b)));
#else
    v8f out;
    for (int i = 0; i < 8; i++) out[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return out;
#endif
}

static inline v8f to_float(v8i x) { return __builtin_convertvector(x, v8f); }

static inline v8f max(v8f a, v8f b) {
#if defined(__AVX2__)
    return (v8f)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return a > b ? a : b;
#endif
}

static inline v8f min(v8f a, v8f b) {
#if defined(__AVX2__)
    return (v8f)_mm256_min_ps((__m256)a, (__m256)b);
#else
    return a < b ? a : b;
#endif
}

static inline v8f magnitude(v8f x) { return (v8f)((v8i)x & 0x7fffffff); }

// To the nearest integer, ties to even; |x| < 2^22.
static inline v8f round_even(v8f x) {
    const v8f magic = splat(12582912.0f);  // 1.5 * 2^23: the sum has no bits behind the point
    return (x + magic) - magic;
}

static inline float sum(v8f x) {
    float out = ((x[0] + x[4]) + (x[1] + x[5])) + ((x[2] + x[6]) + (x[3] + x[7]));
    return out;
}

static inline float largest(v8f x) {
    float out = x[0];
    for (int i = 1; i < 8; i++) out = x[i] > out ? x[i] : out;
    return out;
}

// Eight bytes as fp32.
static inline v8f load_bytes(const int8_t* from) {
#if defined(__AVX2__)
    return to_float((v8i)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)from)));
#elif defined(__ARM_NEON)
    const int16x8_t wide = vmovl_s8(vld1_s8(from));
    return to_float(join<v8i>(vmovl_s16(vget_low_s16(wide)), vmovl_high_s16(wide)));
#else
    v8f out;
    for (int i = 0; i < 8; i++) out[i] = from[i];
    return out;
#endif
}

// Eight fp16 numbers.
static inline v8f load_half(const half* from) {
#if defined(__F16C__)
    return (v8f)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)from));
#elif defined(__ARM_NEON)
    float16x8_t narrow;
    memcpy(&narrow, from, sizeof narrow);
    return join<v8f>(vcvt_f32_f16(vget_low_f16(narrow)), vcvt_high_f32_f16(narrow));
#else
#error "no conversion of fp16 for this instruction set"
#endif
}

// Rounded to the nearest fp16; numbers beyond 65504 become 65504, so that no infinity is made of one.
static inline void store_half(half* to, v8f x) {
    const v8f top = splat(65504.0f);
    v8f kept = min(max(x, -top), top);
    kept = magnitude(x) < splat(__builtin_inff()) ? kept : x;  // what is not finite stays so
#if defined(__F16C__)
    _mm_storeu_si128((__m128i*)to, _mm256_cvtps_ph((__m256)kept, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__ARM_NEON)
    const float16x8_t narrow = vcvt_high_f16_f32(vcvt_f16_f32(low(kept)), high(kept));
    memcpy(to, &narrow, sizeof narrow);
#endif
}

// e^x, off by less than 3e-7 of itself, for -87 < x < 88; 0 below and infinity above. Cody and Waite's reduction
// x = n ln 2 + r, and Taylor's series to the sixth power, whose rest is below 1.3e-7 for |r| < ln 2 / 2.
static inline v8f exponential(v8f x) {
    const v8f low = splat(-87.0f), high = splat(88.5f);
    v8f inside = min(max(x, low), high);
    v8f n = round_even(inside * splat(1.44269504f));
    v8f r = fma(n, splat(-0.693359375f), inside);
    r = fma(n, splat(2.12194440e-4f), r);
    v8f p = splat(1.0f / 720);
    p = fma(p, r, splat(1.0f / 120));
    p = fma(p, r, splat(1.0f / 24));
    p = fma(p, r, splat(1.0f / 6));
    p = fma(p, r, splat(0.5f));
    p = fma(p, r, splat(1.0f));
    p = fma(p, r, splat(1.0f));
    v8i exponent = __builtin_convertvector(n, v8i);
    // in two halves, for n + 127 may be 255 and more
    v8i half_n = exponent >> 1;
    v8f scaled = p * (v8f)((half_n + 127) << 23) * (v8f)((exponent - half_n + 127) << 23);
    scaled = x < low ? v8f{} : scaled;
    scaled = x > high ? splat(__builtin_inff()) : scaled;
    return x != x ? x : scaled;
}

}  // namespace hatchway
