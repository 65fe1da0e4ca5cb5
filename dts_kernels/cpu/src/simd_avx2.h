/* 32-byte registers: AVX2 and FMA. */
#include <immintrin.h>
#define LANES 8
#define DIRECT_ROWS 1
#define WIDE_REGISTERS 0
typedef __m256i vec;
typedef __m256i acc;
typedef __m256 fvec;

INLINE vec load_bytes(const void *p) { return _mm256_loadu_si256(p); }
INLINE void store_bytes(void *p, vec a) { _mm256_storeu_si256(p, a); }
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
/* 16-bit sums of up to PART products: each is within -2048 .. 2032, two multiplications and additions fewer than `dot` */
#define PART 16
INLINE acc part_dot(acc part, vec codes, vec digits) {
    /* as an intrinsic, gcc 12 copies every accumulator to another register and back */
    __asm__("vpaddw %1, %0, %0" : "+x"(part) : "x"(_mm256_maddubs_epi16(codes, digits)));
    return part;
}
INLINE acc part_sum(acc part) { return _mm256_madd_epi16(part, _mm256_set1_epi16(1)); }
INLINE acc add(acc a, acc b) { return _mm256_add_epi32(a, b); }
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

/* Row blocks keep both digits of a number in 16 bits, and codes too: a product is one instruction and one addition. */
#define WORDS 1
INLINE acc dot_words(acc sum, vec codes, vec words) {
    __asm__("vpaddd %1, %0, %0" : "+x"(sum) : "x"(_mm256_madd_epi16(codes, words))); /* as above */
    return sum;
}
/* bytes 0, 2 and 1, 3 of every four as words */
INLINE vec first_words(vec bytes) { return _mm256_and_si256(bytes, _mm256_set1_epi16(255)); }
INLINE vec second_words(vec bytes) { return _mm256_srli_epi16(bytes, 8); }

/* 8 bytes -> values + 4 of two codes of each, from bit `from` on */
INLINE vec spread_words(const uint8_t *bytes, int from) {
    const __m256i table = _mm256_set1_epi32(0x00030805);
    __m256i b = _mm256_srli_epi32(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)bytes)), from);
    __m256i codes = _mm256_and_si256(_mm256_or_si256(b, _mm256_slli_epi32(b, 14)), _mm256_set1_epi32(0x00030003));
    return _mm256_and_si256(_mm256_shuffle_epi8(table, codes), _mm256_set1_epi16(255));
}

/* c[plane] with a byte a lane -> vectors of 2 bytes each, their four planes beside each other */
#define COMPACTS 1
INLINE void compact(vec c[4]) {
    __m256i low01 = _mm256_unpacklo_epi64(c[0], c[1]), low23 = _mm256_unpacklo_epi64(c[2], c[3]);
    __m256i high01 = _mm256_unpackhi_epi64(c[0], c[1]), high23 = _mm256_unpackhi_epi64(c[2], c[3]);
    c[0] = _mm256_permute2x128_si256(low01, low23, 0x20);
    c[1] = _mm256_permute2x128_si256(high01, high23, 0x20);
    c[2] = _mm256_permute2x128_si256(low01, low23, 0x31);
    c[3] = _mm256_permute2x128_si256(high01, high23, 0x31);
}

/* Sampled elements of strides up to 8: a line of x is one byte of 16 columns, those of two groups.  A shuffle of it gives
 * 16 rows of D, two tiles of lanes, two columns each; `part_dot` multiplies and adds them in 16 bits. */
#define TURNS 8
#define TURN_PITCH 8
#define TURNED_BYTES 1
INLINE acc permute_lanes(acc a, acc lanes) { return _mm256_permutevar8x32_epi32(a, lanes); }
/* of 16-bit numbers */
INLINE acc smaller(acc a, acc b) { return _mm256_min_epu16(a, b); }
INLINE acc high_products(acc a, acc b) { return _mm256_mulhi_epu16(a, b); }
enum { MOST_LINE_PAIRS = 1, TURN_UNIT = 1, TURN_FIRST = 0 };
INLINE int line_pairs(int pitch) { return pitch / TURN_PITCH; }
/* two columns a lane -> where they are in a line, in the lower two bytes */
INLINE vec turn_columns(vec columns) {
    return _mm256_and_si256(_mm256_or_si256(columns, _mm256_srli_epi32(columns, 8)), _mm256_set1_epi32(0xffff));
}
/* a lane's lowest two codes in the lower two bytes */
INLINE vec pair_values(vec codes) {
    return _mm256_or_si256(_mm256_and_si256(codes, _mm256_set1_epi32(3)),
                           _mm256_and_si256(_mm256_slli_epi32(codes, 6), _mm256_set1_epi32(0x0300)));
}
/* the lower two bytes of two tiles' lanes: in each half four lanes of the first, then of the second */
INLINE vec join_tiles(vec a, vec b) { return _mm256_packus_epi32(a, b); }
/* codes -> values as bytes, with their signs */
INLINE vec byte_values(vec codes) { return _mm256_shuffle_epi8(_mm256_set1_epi32((int)0xfcff0401), codes); }
INLINE vec load_line(const uint8_t *x) { return _mm256_broadcastsi128_si256(_mm_loadu_si128((const void *)x)); }
INLINE vec turn_bytes(vec columns, vec line) { return _mm256_shuffle_epi8(line, columns); }
/* 256 * high + low of joined tiles, of the first or second */
INLINE acc both_digits(int tile, acc high, acc low) {
    acc pairs = tile ? _mm256_unpackhi_epi16(low, high) : _mm256_unpacklo_epi16(low, high);
    return _mm256_madd_epi16(pairs, _mm256_set1_epi32(256 << 16 | 1));
}
/* 16-bit numbers, each plus 2^15, of two groups -> the upper bytes of both, then the lower ones */
INLINE void lay_pair(const int16_t *a, const int16_t *b, uint8_t *out) {
    const __m128i above = _mm_set1_epi16(INT16_MIN), lower = _mm_set1_epi16(255);
    __m128i one = _mm_xor_si128(_mm_loadu_si128((const void *)a), above);
    __m128i two = _mm_xor_si128(_mm_loadu_si128((const void *)b), above);
    one = _mm_packus_epi16(_mm_and_si128(one, lower), _mm_srli_epi16(one, 8));
    two = _mm_packus_epi16(_mm_and_si128(two, lower), _mm_srli_epi16(two, 8));
    _mm_storeu_si128((void *)out, _mm_unpackhi_epi64(one, two));
    _mm_storeu_si128((void *)(out + 16), _mm_unpacklo_epi64(one, two));
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
