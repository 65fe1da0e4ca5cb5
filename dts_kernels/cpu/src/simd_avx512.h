/* 64-byte registers: AVX-512 BW and VNNI, with or without VBMI. */
#include <immintrin.h>
#define LANES 16
#define DIRECT_ROWS 2
#define WIDE_REGISTERS 1
typedef __m512i vec;
typedef __m512i acc;
typedef __m512 fvec;

INLINE vec load_bytes(const void *p) { return _mm512_loadu_si512(p); }
INLINE vec load_part(const void *p, int64_t count) {
    return _mm512_maskz_loadu_epi8(_cvtu64_mask64((1ull << count) - 1), p);
}

INLINE vec interleave(__m128i a, __m128i b, __m128i c, __m128i d) {
    __m512i rows = _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_inserti128_si256(_mm256_castsi128_si256(a), b, 1)),
                                      _mm256_inserti128_si256(_mm256_castsi128_si256(c), d, 1), 1);
#ifdef __AVX512VBMI__
    const __m512i order = _mm512_set_epi32(0x3f2f1f0f, 0x3e2e1e0e, 0x3d2d1d0d, 0x3c2c1c0c, 0x3b2b1b0b, 0x3a2a1a0a,
                                           0x39291909, 0x38281808, 0x37271707, 0x36261606, 0x35251505, 0x34241404,
                                           0x33231303, 0x32221202, 0x31211101, 0x30201000);
    return _mm512_permutexvar_epi8(order, rows);
#else
    /* dwords of the four rows side by side in each 128-bit lane, then a 4 x 4 byte transpose */
    const __m512i dwords = _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
    const __m512i bytes = _mm512_broadcast_i32x4(_mm_set_epi8(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0));
    return _mm512_shuffle_epi8(_mm512_permutexvar_epi32(dwords, rows), bytes);
#endif
}
INLINE vec load_quad(const uint8_t *a, const uint8_t *b, const uint8_t *c, const uint8_t *d) {
    return interleave(_mm_loadu_si128((const void *)a), _mm_loadu_si128((const void *)b),
                      _mm_loadu_si128((const void *)c), _mm_loadu_si128((const void *)d));
}
INLINE vec quad_part(const uint8_t *a, const uint8_t *b, const uint8_t *c, const uint8_t *d, int count) {
    __mmask16 some = (__mmask16)((1u << count) - 1);
    return interleave(_mm_maskz_loadu_epi8(some, a), _mm_maskz_loadu_epi8(some, b), _mm_maskz_loadu_epi8(some, c),
                      _mm_maskz_loadu_epi8(some, d));
}

INLINE void decode4(vec v, vec c[4]) {
#ifdef __AVX512VBMI__
    /* the shuffle looks at 6 bits, so one table reads codes 0, 1 or 2 of a byte in place */
    const __m512i first = _mm512_set1_epi32(0x00030805);
    const __m512i second = _mm512_broadcast_i32x4(_mm_set_epi32(0, 0x03030303, 0x08080808, 0x05050505));
    const __m512i third =
        _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_inserti128_si256(_mm256_set1_epi8(5), _mm_set1_epi8(8), 1)),
                           _mm256_inserti128_si256(_mm256_set1_epi8(3), _mm_setzero_si128(), 1), 1);
    c[0] = _mm512_permutexvar_epi8(v, first);
    c[1] = _mm512_permutexvar_epi8(v, second);
    c[2] = _mm512_permutexvar_epi8(v, third);
    c[3] = _mm512_permutexvar_epi8(_mm512_srli_epi16(v, 6), first);
#else
    const __m512i nibble = _mm512_set1_epi8(15);
    const __m512i even = _mm512_set1_epi32(0x00030805);
    const __m512i odd = _mm512_broadcast_i32x4(_mm_set_epi32(0, 0x03030303, 0x08080808, 0x05050505));
    __m512i low = _mm512_and_si512(v, nibble), high = _mm512_and_si512(_mm512_srli_epi16(v, 4), nibble);
    c[0] = _mm512_shuffle_epi8(even, low);
    c[1] = _mm512_shuffle_epi8(odd, low);
    c[2] = _mm512_shuffle_epi8(even, high);
    c[3] = _mm512_shuffle_epi8(odd, high);
#endif
}

#define COMPACTS 1
/* c[plane] with a byte a lane -> vectors of 4 bytes each, their four planes beside each other */
INLINE void compact(vec c[4]) {
    vec low01 = _mm512_shuffle_i32x4(c[0], c[1], 0x44), low23 = _mm512_shuffle_i32x4(c[2], c[3], 0x44);
    vec high01 = _mm512_shuffle_i32x4(c[0], c[1], 0xee), high23 = _mm512_shuffle_i32x4(c[2], c[3], 0xee);
    c[0] = _mm512_shuffle_i32x4(low01, low23, 0x88);
    c[1] = _mm512_shuffle_i32x4(low01, low23, 0xdd);
    c[2] = _mm512_shuffle_i32x4(high01, high23, 0x88);
    c[3] = _mm512_shuffle_i32x4(high01, high23, 0xdd);
}

/* 16 bytes -> 64 values + 4, a byte's four ranks in one lane */
#define SPREADS 1
INLINE vec spread(__m128i bytes) {
    const __m512i table = _mm512_set1_epi32(0x00030805);
    __m512i b = _mm512_cvtepu8_epi32(bytes);
#ifdef __AVX512VBMI__
    return _mm512_permutexvar_epi8(_mm512_multishift_epi64_epi8(_mm512_set1_epi64(0x2624222006040200), b), table);
#else
    __m512i some = _mm512_or_si512(b, _mm512_slli_epi32(b, 6));
    __m512i all = _mm512_or_si512(some, _mm512_slli_epi32(some, 12));
    return _mm512_shuffle_epi8(table, _mm512_and_si512(all, _mm512_set1_epi8(3)));
#endif
}

INLINE acc zero(void) { return _mm512_setzero_si512(); }
INLINE acc dot(acc sum, vec codes, vec digits) {
    /* as an intrinsic, gcc 12 copies every accumulator to another register and back, half the speed */
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(codes), "v"(digits));
    return sum;
}
INLINE vec broadcast(const int8_t *p) {
    int32_t q;
    memcpy(&q, p, 4);
    return _mm512_set1_epi32(q);
}
INLINE acc combine(acc high, acc low) { return _mm512_add_epi32(_mm512_slli_epi32(high, 8), low); }
INLINE void add_store(uint32_t *p, acc sum) { _mm512_storeu_si512(p, _mm512_add_epi32(_mm512_loadu_si512(p), sum)); }
INLINE __m128i fold(acc a) {
    __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(a), _mm512_extracti64x4_epi64(a, 1));
    return _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}
INLINE void sum4(const acc a[4], uint32_t out[4]) {
    __m128i low = _mm_hadd_epi32(fold(a[0]), fold(a[1])), high = _mm_hadd_epi32(fold(a[2]), fold(a[3]));
    _mm_storeu_si128((void *)out, _mm_hadd_epi32(low, high));
}

/* Sampled elements of strides up to 16: a line of x is 32 words, groups' columns `pitch` words apart. */
#define TURNS 16
#define TURN_PITCH 4
INLINE acc permute_lanes(acc a, acc lanes) { return _mm512_permutexvar_epi32(lanes, a); }
/* of 16-bit numbers */
INLINE acc smaller(acc a, acc b) { return _mm512_min_epu16(a, b); }
INLINE acc high_products(acc a, acc b) { return _mm512_mulhi_epu16(a, b); }
enum { MOST_LINE_PAIRS = 4 };
INLINE int line_pairs(int pitch) { return 16 / pitch; }
#ifdef __AVX512VBMI__ /* both bytes of a column: Intel's cores take two steps for a shuffle of words, and one for bytes */
enum { TURN_UNIT = 0x0202, TURN_FIRST = 0x01000100 };
#else
enum { TURN_UNIT = 1, TURN_FIRST = 0 };
#endif
INLINE vec turn_columns(vec columns) { return columns; }
INLINE vec load_line(const int16_t *x) { return _mm512_loadu_si512(x); }
INLINE vec turn_pairs(vec columns, vec line) {
#ifdef __AVX512VBMI__
    return _mm512_permutexvar_epi8(columns, line);
#else
    return _mm512_permutexvar_epi16(columns, line);
#endif
}
/* the values of a lane's lowest two codes as words */
INLINE vec pair_values(vec codes) {
    const __m512i table =
        _mm512_set_epi32((int)0xfffcfffc, (int)0xfffcffff, (int)0xfffc0004, (int)0xfffc0001, (int)0xfffffffc,
                         (int)0xffffffff, (int)0xffff0004, (int)0xffff0001, 0x0004fffc, 0x0004ffff, 0x00040004,
                         0x00040001, 0x0001fffc, 0x0001ffff, 0x00010004, 0x00010001);
    return _mm512_permutexvar_epi32(codes, table);
}
INLINE acc dot_pairs(acc sum, vec words, vec values) {
    __asm__("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(words), "v"(values)); /* as above */
    return sum;
}

INLINE acc load_codes(const uint8_t *p) { return _mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)p)); }
INLINE acc codes_part(const uint8_t *p, int count) {
    return _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8((__mmask16)((1u << count) - 1), p));
}
INLINE fvec load_values(const float *values) { return _mm512_broadcast_f32x4(_mm_loadu_ps(values)); }
INLINE fvec value(acc codes, int plane, fvec values) { /* the permutation looks at 4 bits, the values repeat after 2 */
    return _mm512_permutexvar_ps(_mm512_srli_epi32(codes, 2 * plane), values);
}
INLINE fvec fload(const float *p) { return _mm512_loadu_ps(p); }
INLINE void fstore(float *p, fvec a) { _mm512_storeu_ps(p, a); }
INLINE fvec fset(float a) { return _mm512_set1_ps(a); }
INLINE fvec fma4(fvec a, fvec b, fvec sum) { return _mm512_fmadd_ps(a, b, sum); }
INLINE fvec fmul(fvec a, fvec b) { return _mm512_mul_ps(a, b); }
INLINE fvec to_float(acc a, uint32_t offset) {
    return _mm512_cvtepi32_ps(_mm512_sub_epi32(a, _mm512_set1_epi32((int32_t)offset)));
}
INLINE fvec fadd(fvec a, fvec b) { return _mm512_add_ps(a, b); }
