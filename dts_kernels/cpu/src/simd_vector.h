/* 16-byte registers: the compiler's vector types, so any machine; with NEON, its shuffles and dot products. */
#define LANES 4
#define DIRECT_ROWS 2
#ifdef USE_NEON
#include <arm_neon.h>
#define WIDE_REGISTERS 1
#else
#define WIDE_REGISTERS 0
#endif
typedef uint8_t vec __attribute__((vector_size(16)));
typedef int16_t vec16 __attribute__((vector_size(16)));
typedef uint32_t acc __attribute__((vector_size(16)));
typedef float fvec __attribute__((vector_size(16)));

INLINE vec load_bytes(const void *p) {
    vec a;
    memcpy(&a, p, 16);
    return a;
}
INLINE vec load_part(const void *p, int64_t count) {
    vec a = {0};
    memcpy(&a, p, (size_t)count);
    return a;
}

INLINE vec load_quad(const uint8_t *a, const uint8_t *b, const uint8_t *c, const uint8_t *d) {
    uint8_t rows[16];
    memcpy(rows, a, 4);
    memcpy(rows + 4, b, 4);
    memcpy(rows + 8, c, 4);
    memcpy(rows + 12, d, 4);
#ifdef USE_NEON
    const uint8x16_t order = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
    return (vec)vqtbl1q_u8(vld1q_u8(rows), order);
#else
    return (vec){rows[0], rows[4], rows[8],  rows[12], rows[1], rows[5], rows[9],  rows[13],
                 rows[2], rows[6], rows[10], rows[14], rows[3], rows[7], rows[11], rows[15]};
#endif
}

INLINE void decode4(vec v, vec c[4]) {
#ifdef USE_NEON
    const uint8x16_t even = {5, 8, 3, 0, 5, 8, 3, 0, 5, 8, 3, 0, 5, 8, 3, 0};
    const uint8x16_t odd = {5, 5, 5, 5, 8, 8, 8, 8, 3, 3, 3, 3, 0, 0, 0, 0};
    uint8x16_t low = vandq_u8((uint8x16_t)v, vdupq_n_u8(15)), high = vshrq_n_u8((uint8x16_t)v, 4);
    c[0] = (vec)vqtbl1q_u8(even, low);
    c[1] = (vec)vqtbl1q_u8(odd, low);
    c[2] = (vec)vqtbl1q_u8(even, high);
    c[3] = (vec)vqtbl1q_u8(odd, high);
#else
    for (int plane = 0; plane < 4; plane++) {
        vec code = v >> (uint8_t)(2 * plane), large = code & 1, negative = -(code >> 1 & 1);
        vec size = (large << 1) + large + 1;
        c[plane] = ((size ^ negative) - negative) + 4;
    }
#endif
}

INLINE acc zero(void) { return (acc){0}; }
INLINE acc dot(acc sum, vec codes, vec digits) {
#if defined(USE_NEON) && defined(__ARM_FEATURE_DOTPROD)
    return (acc)vdotq_s32((int32x4_t)sum, (int8x16_t)codes, (int8x16_t)digits);
#elif defined(USE_NEON)
    int16x8_t low = vmull_s8(vget_low_s8((int8x16_t)codes), vget_low_s8((int8x16_t)digits));
    int16x8_t high = vmull_s8(vget_high_s8((int8x16_t)codes), vget_high_s8((int8x16_t)digits));
    return (acc)vpadalq_s16((int32x4_t)sum, vpaddq_s16(low, high));
#else
    vec16 c = (vec16)codes, d = (vec16)digits; /* bytes 2i and 2i + 1 in one lane: take them apart by shifts */
    vec16 pairs = (c & 255) * ((vec16)((acc)d << 8 & 0xff00ff00u) >> 8) + (c >> 8) * (d >> 8);
    typedef int32_t vec32 __attribute__((vector_size(16)));
    vec32 wide = (vec32)pairs;
    return sum + (acc)((vec32)((acc)wide << 16) >> 16) + (acc)(wide >> 16);
#endif
}
INLINE vec broadcast(const int8_t *p) {
    uint32_t q;
    memcpy(&q, p, 4);
    return (vec)(acc){q, q, q, q};
}
INLINE acc combine(acc high, acc low) { return (high << 8) + low; }
INLINE void add_store(uint32_t *p, acc sum) {
    acc a;
    memcpy(&a, p, 16);
    a += sum;
    memcpy(p, &a, 16);
}
INLINE void sum4(const acc a[4], uint32_t out[4]) {
    for (int i = 0; i < 4; i++) out[i] = a[i][0] + a[i][1] + a[i][2] + a[i][3];
}

INLINE acc load_codes(const uint8_t *p) { return (acc){p[0], p[1], p[2], p[3]}; }
INLINE fvec load_values(const float *values) {
    fvec a;
    memcpy(&a, values, 16);
    return a;
}
INLINE fvec value(acc codes, int plane, fvec values) {
    acc large = -(codes >> (uint32_t)(2 * plane) & 1), negative = -(codes >> (uint32_t)(2 * plane + 1) & 1);
    acc all = (acc)values, v[4];
    for (int i = 0; i < 4; i++) v[i] = (acc){all[i], all[i], all[i], all[i]};
    acc positive = v[0] ^ ((v[0] ^ v[1]) & large), other = v[2] ^ ((v[2] ^ v[3]) & large);
    return (fvec)(positive ^ ((positive ^ other) & negative));
}
INLINE fvec fload(const float *p) {
    fvec a;
    memcpy(&a, p, 16);
    return a;
}
INLINE void fstore(float *p, fvec a) { memcpy(p, &a, 16); }
INLINE fvec fset(float a) { return (fvec){a, a, a, a}; }
INLINE fvec fma4(fvec a, fvec b, fvec sum) { return sum + a * b; }
INLINE fvec fmul(fvec a, fvec b) { return a * b; }
INLINE fvec to_float(acc a, uint32_t offset) {
    typedef int32_t signed32 __attribute__((vector_size(16)));
    return __builtin_convertvector((signed32)(a - offset), fvec);
}
INLINE fvec fadd(fvec a, fvec b) { return a + b; }
