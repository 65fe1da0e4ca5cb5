/* Vectors in few bits. */

enum { SHARED = 64 }; /* numbers of a scale */

typedef uint32_t words8 __attribute__((vector_size(32)));
typedef int32_t whole8 __attribute__((vector_size(32)));
typedef float floats8 __attribute__((vector_size(32)));
typedef int8_t bytes8 __attribute__((vector_size(8)));

/* Eight numbers of `bits` each from their bytes, each from its own sign on: compilers make worse of the same in a loop. */
INLINE void eight(const uint8_t *codes, int bits, float scale, float *out) {
    floats8 numbers;
    if (bits == 8) {
        bytes8 whole;
        memcpy(&whole, codes, sizeof whole);
        numbers = scale * __builtin_convertvector(whole, floats8);
    } else {
        uint32_t word = 0;
        for (int i = 0; i < bits; i++) word |= (uint32_t)codes[i] << 8 * i;
        words8 left = {32 - bits,     32 - 2 * bits, 32 - 3 * bits, 32 - 4 * bits,
                       32 - 5 * bits, 32 - 6 * bits, 32 - 7 * bits, 32 - 8 * bits};
        words8 all = {word, word, word, word, word, word, word, word};
        numbers = scale * __builtin_convertvector((whole8)(all << left) >> (32 - bits), floats8);
    }
    memcpy(out, &numbers, sizeof numbers);
}

INLINE void numbers_of(const uint8_t *codes, const uint16_t *scales, int bits, int64_t n, float *out) {
    for (int64_t first = 0; first < n; first += SHARED, scales++) {
        float scale;
        uint32_t word = (uint32_t)*scales << 16;
        memcpy(&scale, &word, sizeof scale);
        int64_t last = first + SHARED < n ? first + SHARED : n, at = first;
        for (; at + 8 <= last; at += 8, codes += bits) eight(codes, bits, scale, out + at);
        if (at == last) continue;
        uint8_t own[8] = {0};
        float rest[8];
        memcpy(own, codes, (size_t)((last - at) * bits + 7) / 8);
        eight(own, bits, scale, rest);
        memcpy(out + at, rest, (size_t)(last - at) * sizeof *out);
    }
}

static void numbers(const uint8_t *codes, const uint16_t *scales, int bits, int64_t n, float *out) {
    if (bits == 3) numbers_of(codes, scales, 3, n, out);
    else if (bits == 4) numbers_of(codes, scales, 4, n, out);
    else numbers_of(codes, scales, 8, n, out);
}
