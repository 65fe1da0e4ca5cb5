/* 32-byte registers: AVX2 and FMA. */
#include <immintrin.h>
#define LANES 8
#define DIRECT_ROWS 1
#define WIDE_REGISTERS 0
typedef __m256i vec;
typedef __m256i acc;
typedef __m256 fvec;

INLINE vec load_bytes(const void *p) { return _mm256_loadu_si256(p); }
INLINE vec load_part(const void *p, int64_t count) {
    uint8_t whole[32] = {0};
    memcpy(whole, p, (size_t)count);
    return load_bytes(whole);
}

INLINE vec load_quad(const uint8_t *a, const uint8_t *b, const uint8_t *c, const uint8_t *d) {
    __m128i ab = _mm_unpacklo_epi8(_mm_loadl_epi64((const void *)a), _mm_loadl_epi64((const void *)b));
    __m128i cd = _mm_unpacklo_epi8(_mm_loadl_epi64((const void *)c), _mm_loadl_epi64((const void *)d));
    return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_unpacklo_epi16(ab, cd)), _mm_unpackhi_epi16(ab, cd), 1);
}

INLINE void decode4(vec v, vec c[4]) { /* a nibble is two codes: one table for its lower, one for its upper */
    const __m256i nibble = _mm256_set1_epi8(15);
    const __m256i even = _mm256_set1_epi32(0x00030805);
    const __m256i odd = _mm256_broadcastsi128_si256(_mm_set_epi32(0, 0x03030303, 0x08080808, 0x05050505));
    __m256i low = _mm256_and_si256(v, nibble), high = _mm256_and_si256(_mm256_srli_epi16(v, 4), nibble);
    c[0] = _mm256_shuffle_epi8(even, low);
    c[1] = _mm256_shuffle_epi8(odd, low);
    c[2] = _mm256_shuffle_epi8(even, high);
    c[3] = _mm256_shuffle_epi8(odd, high);
}

INLINE acc zero(void) { return _mm256_setzero_si256(); }
INLINE acc dot(acc sum, vec codes, vec digits) { /* pairs reach 2 * 8 * 128: no saturation */
    __m256i pairs = _mm256_maddubs_epi16(codes, digits);
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
INLINE vec broadcast(const int8_t *p) {
    int32_t q;
    memcpy(&q, p, 4);
    return _mm256_set1_epi32(q);
}
INLINE acc combine(acc high, acc low) { return _mm256_add_epi32(_mm256_slli_epi32(high, 8), low); }
INLINE void add_store(uint32_t *p, acc sum) {
    _mm256_storeu_si256((void *)p, _mm256_add_epi32(_mm256_loadu_si256((const void *)p), sum));
}
INLINE void sum4(const acc a[4], uint32_t out[4]) {
    __m256i all = _mm256_hadd_epi32(_mm256_hadd_epi32(a[0], a[1]), _mm256_hadd_epi32(a[2], a[3]));
    _mm_storeu_si128((void *)out, _mm_add_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1)));
}

INLINE acc load_codes(const uint8_t *p) { return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)p)); }
INLINE fvec load_values(const float *values) { return _mm256_broadcast_ps((const __m128 *)values); }
INLINE fvec value(acc codes, int plane, fvec values) { /* the permutation looks at 3 bits, the values repeat after 2 */
    return _mm256_permutevar8x32_ps(values, _mm256_srli_epi32(codes, 2 * plane));
}
INLINE fvec fload(const float *p) { return _mm256_loadu_ps(p); }
INLINE void fstore(float *p, fvec a) { _mm256_storeu_ps(p, a); }
INLINE fvec fset(float a) { return _mm256_set1_ps(a); }
INLINE fvec fma4(fvec a, fvec b, fvec sum) { return _mm256_fmadd_ps(a, b, sum); }
INLINE fvec fmul(fvec a, fvec b) { return _mm256_mul_ps(a, b); }
INLINE fvec to_float(acc a, uint32_t offset) {
    return _mm256_cvtepi32_ps(_mm256_sub_epi32(a, _mm256_set1_epi32((int32_t)offset)));
}
INLINE fvec fadd(fvec a, fvec b) { return _mm256_add_ps(a, b); }
