/* The inner loops, written once over the few operations a SIMD header defines and compiled once a variant.
 *
 * Codes become the unsigned numbers value + 4 = {5, 8, 3, 0}; the products with the digits of x (or t) are exact
 * integers modulo 2^32, and whoever uses them takes 4 * sum(digits) off again.  So the order of summing, the number
 * of threads and the rows that share a pass never change a result.
 */
#include <math.h>
#include <string.h>

#include "kernels.h"

#define INLINE static inline __attribute__((always_inline))
#include SIMD_HEADER

#ifdef __clang__ /* element i of the result needs element i of the operands only, which may be the same memory */
#define ELEMENTWISE _Pragma("clang loop vectorize(assume_safety)")
#else
#define ELEMENTWISE _Pragma("GCC ivdep")
#endif

enum { BYTES = 4 * LANES, TILE = 4 * LANES, AHEAD = 64 };

#if LANES != 16 /* no masked loads: copy a ragged end */
INLINE vec quad_part(const uint8_t *a, const uint8_t *b, const uint8_t *c, const uint8_t *d, int count) {
    uint8_t rows[4][LANES] = {{0}};
    memcpy(rows[0], a, (size_t)count);
    memcpy(rows[1], b, (size_t)count);
    memcpy(rows[2], c, (size_t)count);
    memcpy(rows[3], d, (size_t)count);
    return load_quad(rows[0], rows[1], rows[2], rows[3]);
}
INLINE acc codes_part(const uint8_t *p, int count) {
    uint8_t whole[LANES] = {0};
    memcpy(whole, p, (size_t)count);
    return load_codes(whole);
}
#endif

/* ---- numbers -------------------------------------------------------------------------------------------------- */

INLINE float from_bits(uint32_t bits) {
    float f;
    memcpy(&f, &bits, 4);
    return f;
}
INLINE uint32_t to_bits(float f) {
    uint32_t bits;
    memcpy(&bits, &f, 4);
    return bits;
}

INLINE float half_to_float(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, rest = h & 0x7fff;
    float small = from_bits(rest << 13) * 0x1p112f; /* rebias; right for subnormals too */
    return from_bits(sign | (rest >= 0x7c00 ? 0x7f800000u | (rest & 0x3ff) << 13 : to_bits(small)));
}
INLINE uint16_t float_to_half(float f) {
    uint32_t bits = to_bits(f), sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffff;
    if (rest > 0x7f800000) return (uint16_t)(sign | 0x7e00);
    if (rest >= 0x477ff000) return (uint16_t)(sign | 0x7c00);
    if (rest < 0x38800000) /* subnormal: let the adder round at 2^-24 */
        return (uint16_t)(sign | (to_bits(from_bits(rest) + 0.5f) - 0x3f000000u));
    return (uint16_t)(sign | (rest + 0xfff + (rest >> 13 & 1) - 0x38000000u) >> 13);
}
INLINE uint16_t float_to_bfloat(float f) {
    uint32_t bits = to_bits(f);
    uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16, nan = bits >> 16 | 0x40;
    return (uint16_t)((bits & 0x7fffffff) > 0x7f800000 ? nan : rounded);
}

static void widen(const void *in, int dtype, int64_t count, float *out) {
    if (dtype == FLOAT32) memcpy(out, in, (size_t)count * 4);
    else if (dtype == BFLOAT16)
        for (int64_t i = 0; i < count; i++) out[i] = from_bits((uint32_t)((const uint16_t *)in)[i] << 16);
    else
        for (int64_t i = 0; i < count; i++) out[i] = half_to_float(((const uint16_t *)in)[i]);
}

static void narrow(const float *in, const void *add, void *out, int dtype, int64_t count) {
    const float *add32 = add;
    const uint16_t *add16 = add;
    float *out32 = out;
    uint16_t *out16 = out;
    if (dtype == FLOAT32 && add) {
        ELEMENTWISE
        for (int64_t i = 0; i < count; i++) out32[i] = add32[i] + in[i];
    } else if (dtype == FLOAT32) {
        memcpy(out, in, (size_t)count * 4);
    } else if (dtype == BFLOAT16 && add) {
        ELEMENTWISE
        for (int64_t i = 0; i < count; i++) out16[i] = float_to_bfloat(from_bits((uint32_t)add16[i] << 16) + in[i]);
    } else if (dtype == BFLOAT16) {
        ELEMENTWISE
        for (int64_t i = 0; i < count; i++) out16[i] = float_to_bfloat(in[i]);
    } else if (add) {
        ELEMENTWISE
        for (int64_t i = 0; i < count; i++) out16[i] = float_to_half(half_to_float(add16[i]) + in[i]);
    } else {
        ELEMENTWISE
        for (int64_t i = 0; i < count; i++) out16[i] = float_to_half(in[i]);
    }
}

/* The largest size of x; as integers, so that an infinity or NaN is larger than every number. */
INLINE uint32_t largest_of(const float *x, int64_t count) {
    uint32_t largest = 0;
    for (int64_t i = 0; i < count; i++) {
        uint32_t size = to_bits(x[i]) & 0x7fffffff;
        largest = size > largest ? size : largest;
    }
    return largest;
}

/* The factor from x to 16 bits, 0 where all of them are 0; sets the scale back, and no sum yet. */
INLINE float start_digits(uint32_t largest, int limit, Digits *out) {
    float size = from_bits(largest), inverse = (float)limit / size;
    out->sum = 0;
    if (largest >= 0x7f800000 || !(inverse <= 3e38f)) { /* not finite: all of the row's result is NaN; or nothing */
        out->scale = largest >= 0x7f800000 ? NAN : 0.0f;
        return 0;
    }
    out->scale = size / (float)limit;
    return inverse;
}

/* adding 1.5 * 2^23 rounds to an integer in the low bits */
INLINE int32_t to_integer(float x) { return (int32_t)(to_bits(x + 12582912.0f) - 0x4b400000u); }

static void quantise(const float *x, int64_t count, int64_t padded, int limit, Digits *out) {
    int8_t *high = out->high, *low = out->low; /* bytes may alias anything, *out too */
    memset(high + count, 0, (size_t)(padded - count));
    memset(low + count, 0, (size_t)(padded - count));
    float inverse = start_digits(largest_of(x, count), limit, out);
    if (inverse == 0) {
        memset(high, 0, (size_t)count);
        memset(low, 0, (size_t)count);
        return;
    }
    uint32_t sum = 0;
    ELEMENTWISE
    for (int64_t i = 0; i < count; i++) {
        int32_t q = to_integer(x[i] * inverse);
        sum += (uint32_t)q;
        high[i] = (int8_t)((q + 128) >> 8);
        low[i] = (int8_t)(((q + 128) & 255) - 128);
    }
    out->sum = sum;
}

/* ---- integer products straight from the bytes ----------------------------------------------------------------- */

#ifndef PART /* no narrower sums than those of `dot` */
#define PART ((int64_t)1 << 40)
#define part_dot dot
INLINE acc part_sum(acc part) { return part; }
#endif

/* sums[row] += the digits' sums of `vectors` registers, [2 * row + digit] */
INLINE void add_parts(int rows, int vectors, acc a[][4], uint32_t *const *sums) {
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < vectors; i++)
            add_store(sums[r] + i * LANES, combine(part_sum(a[2 * r][i]), part_sum(a[2 * r + 1][i])));
}

INLINE void shrink_rows(int rows, int whole, const uint8_t *v, int64_t stride, int64_t n, int bytes,
                        const int8_t *const *digits, uint32_t *const *sums) {
    for (int64_t q = 0, last; q < n; q = last) {
        acc a[2 * DIRECT_ROWS][4];
        for (int d = 0; d < 2 * rows; d++)
            for (int i = 0; i < 4; i++) a[d][i] = zero();
        last = n - q < 4 * PART ? n : q + 4 * PART;
        for (; q < last; q += 4) {
            const uint8_t *r0 = v + q * stride, *r1 = q + 1 < n ? r0 + stride : r0, *r2 = q + 2 < n ? r1 + stride : r0,
                          *r3 = q + 3 < n ? r2 + stride : r0; /* rows past the end meet digits that are zero */
            vec c[4];
            decode4(whole ? load_quad(r0, r1, r2, r3) : quad_part(r0, r1, r2, r3, bytes), c);
            for (int d = 0; d < 2 * rows; d++) {
                vec x = broadcast(digits[d] + q);
                for (int i = 0; i < 4; i++) a[d][i] = part_dot(a[d][i], c[i], x);
            }
        }
        add_parts(rows, 4, a, sums);
    }
}

static void shrink(int rows, const uint8_t *v, int64_t stride, int64_t n, int bytes, const int8_t *const *digits,
                   uint32_t *const *sums) {
    if (rows == 1 && bytes == LANES) shrink_rows(1, 1, v, stride, n, bytes, digits, sums);
    else if (rows == 1) shrink_rows(1, 0, v, stride, n, bytes, digits, sums);
#if DIRECT_ROWS > 1
    else if (bytes == LANES) shrink_rows(2, 1, v, stride, n, bytes, digits, sums);
    else shrink_rows(2, 0, v, stride, n, bytes, digits, sums);
#endif
}

INLINE vec u_part(const uint8_t *u, int64_t at, int64_t bytes) {
    return at + BYTES <= bytes ? load_bytes(u + at) : load_part(u + at, bytes - at);
}

INLINE void expand_rows(int rows, const uint8_t *const *u, int64_t bytes, const int8_t *const *digits, int64_t plane,
                        uint32_t sums[][4]) {
    acc a[2 * DIRECT_ROWS][4];
    for (int d = 0; d < 2 * rows; d++)
        for (int o = 0; o < 4; o++) a[d][o] = zero();
#ifdef WORDS /* 16 registers: an output's codes at a time */
    for (int64_t at = 0, last; at < bytes; at = last) {
        acc part[2 * DIRECT_ROWS][4];
        for (int d = 0; d < 2 * rows; d++)
            for (int o = 0; o < 4; o++) part[d][o] = zero();
        last = bytes - at < PART / 4 * BYTES ? bytes : at + PART / 4 * BYTES;
        for (; at < last; at += BYTES)
            for (int o = 0; o < 4; o++) {
                vec c[4];
                decode4(u_part(u[o], at, bytes), c);
                for (int d = 0; d < 2 * rows; d++)
                    for (int i = 0; i < 4; i++)
                        part[d][o] = part_dot(part[d][o], c[i], load_bytes(digits[d] + i * plane + at));
            }
        for (int d = 0; d < 2 * rows; d++)
            for (int o = 0; o < 4; o++) a[d][o] = add(a[d][o], part_sum(part[d][o]));
    }
#else
    for (int64_t at = 0; at < bytes; at += BYTES) {
        vec c[4][4];
        for (int o = 0; o < 4; o++) decode4(u_part(u[o], at, bytes), c[o]);
        for (int i = 0; i < 4; i++)
            for (int d = 0; d < 2 * rows; d++) {
                vec t = load_bytes(digits[d] + i * plane + at);
                for (int o = 0; o < 4; o++) a[d][o] = dot(a[d][o], c[o][i], t);
            }
    }
#endif
    for (int r = 0; r < rows; r++) {
        acc both[4];
        for (int o = 0; o < 4; o++) both[o] = combine(a[2 * r][o], a[2 * r + 1][o]);
        sum4(both, sums[r]);
    }
}

static void expand4(int rows, const uint8_t *const *u, int64_t bytes, const int8_t *const *digits, int64_t plane,
                    uint32_t sums[][4]) {
    if (rows == 1) expand_rows(1, u, bytes, digits, plane, sums);
#if DIRECT_ROWS > 1
    else expand_rows(2, u, bytes, digits, plane, sums);
#endif
}

/* ---- integer products of many rows: decode a tile once, multiply it with all --------------------------------------- */

static void decode_v(const uint8_t *v, int64_t stride, int64_t n, int bytes, uint8_t *tile) {
    for (int64_t q = 0; q < n; q += 4, tile += 4 * BYTES) {
        const uint8_t *r0 = v + q * stride, *r1 = q + 1 < n ? r0 + stride : r0, *r2 = q + 2 < n ? r1 + stride : r0,
                      *r3 = q + 3 < n ? r2 + stride : r0;
        vec c[4];
        decode4(bytes == LANES ? load_quad(r0, r1, r2, r3) : quad_part(r0, r1, r2, r3, bytes), c);
        memcpy(tile, c, 4 * BYTES);
    }
}

INLINE void multiply_rows(int rows, int64_t quads, const uint8_t *tile, const int8_t *const *digits,
                          uint32_t *const *sums) {
    for (int64_t q = 0, last; q < quads; q = last) {
        acc a[2 * MAX_ROWS][4];
        for (int d = 0; d < 2 * rows; d++)
            for (int i = 0; i < 4; i++) a[d][i] = zero();
        last = quads - q < PART ? quads : q + PART;
        for (; q < last; q++, tile += 4 * BYTES) {
            vec c[4];
            for (int i = 0; i < 4; i++) c[i] = load_bytes(tile + i * BYTES);
            for (int d = 0; d < 2 * rows; d++) {
                vec x = broadcast(digits[d] + 4 * q);
                for (int i = 0; i < 4; i++) a[d][i] = part_dot(a[d][i], c[i], x);
            }
        }
        add_parts(rows, 4, a, sums);
    }
}

static void multiply(int64_t rows, int64_t quads, const uint8_t *tile, const int8_t *const *digits,
                     uint32_t *const *sums) {
#if WIDE_REGISTERS
    for (; rows >= 3; rows -= 3, digits += 6, sums += 3) multiply_rows(3, quads, tile, digits, sums);
    if (rows == 2) multiply_rows(2, quads, tile, digits, sums), rows = 0;
#endif
    for (; rows > 0; rows--, digits += 2, sums++) multiply_rows(1, quads, tile, digits, sums);
}

/* ---- float32 products ------------------------------------------------------------------------------------------- */

static void shrink_float(const float *x, const uint8_t *v, int64_t stride, int64_t n, int64_t bytes,
                         const float *values, float *t, int64_t plane) {
    fvec table = load_values(values);
    for (int64_t first = 0; first < n; first += AHEAD) {
        int64_t last = first + AHEAD < n ? first + AHEAD : n;
        for (int64_t at = 0; at < bytes; at += LANES) {
            fvec a[4];
            int part = bytes - at < LANES ? (int)(bytes - at) : LANES;
            for (int i = 0; i < 4; i++) a[i] = fload(t + i * plane + at);
            for (int64_t row = first; row < last; row++) {
                const uint8_t *p = v + row * stride + at;
                acc codes = part == LANES ? load_codes(p) : codes_part(p, part);
                for (int i = 0; i < 4; i++) a[i] = fma4(value(codes, i, table), fset(x[row]), a[i]);
            }
            for (int i = 0; i < 4; i++) fstore(t + i * plane + at, a[i]);
        }
    }
}

static float expand_float(const uint8_t *u, int64_t bytes, const float *values, const float *t, int64_t plane) {
    fvec table = load_values(values), a[4] = {fset(0), fset(0), fset(0), fset(0)};
    for (int64_t at = 0; at < bytes; at += LANES) {
        acc codes = at + LANES <= bytes ? load_codes(u + at) : codes_part(u + at, (int)(bytes - at));
        for (int i = 0; i < 4; i++) a[i] = fma4(value(codes, i, table), fload(t + i * plane + at), a[i]);
    }
    float lanes[LANES];
    fstore(lanes, fadd(fadd(a[0], a[1]), fadd(a[2], a[3])));
    for (int width = LANES / 2; width; width /= 2)
        for (int i = 0; i < width; i++) lanes[i] += lanes[i + width];
    return lanes[0];
}

#include "variant_blocks.h"
#include "variant_samples.h"
#include "variant_turns.h"
#include "variant_rounding.h"
#include "variant_vectors.h"

#define NAME2(v) dts_##v
#define NAME(v) NAME2(v)
#define TEXT2(v) #v
#define TEXT(v) TEXT2(v)
const Kernels NAME(VARIANT) = {
    TEXT(VARIANT),    LANES,         DIRECT_ROWS,    BLOCK_DIGIT,     widen,         narrow,
    quantise,         shrink,        expand4,        decode_columns,  decode_v,      multiply,
    quantise_block,   decode_ranks,  multiply_ranks, scale_ranks,     decode_block,  expand_block,
    shrink_float,     expand_float,  samples_gather, samples_scatter, samples_panel, TURNS,
    TURN_PITCH,       samples_whole, samples_lay,    samples_turned,  samples_row,   numbers,
    round_components,
};
