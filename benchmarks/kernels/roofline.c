/* What a core does at most of what the CPU products are made of: nanoseconds of this thread's time an instruction group.
 *
 * Compiled with a variant's own flags (dts_kernels/cpu/build.py) and run by benchmarks/kernels/roofline.py.  Everything
 * lies in the first-level cache, and sums enough run beside each other: two instructions a cycle that take five each need
 * ten.
 */
#include <immintrin.h>
#include <stdint.h>
#include <stdio.h>
#include <time.h>

enum { STEPS = 48, PITCH = 416, TURNS = 2000, TRIES = 30 };

#ifdef __AVX512VNNI__
typedef __m512i vec;
enum { ROWS = 16 };
#define LOAD(p) _mm512_loadu_si512(p)
#define LINE(p) _mm512_loadu_si512(p)
#define ZERO _mm512_setzero_si512()
#define FMA(sum, a, b) __asm__ volatile("vfmadd231ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b))
#define DIGITS(sum, a, b) __asm__ volatile("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b))
#ifdef __AVX512VBMI__
#define SHUFFLE "vpermb"
#else
#define SHUFFLE "vpermw"
#endif
#define SHUFFLED(sum, line, a, b)                                                                                      \
    do {                                                                                                               \
        vec two;                                                                                                       \
        __asm__ volatile(SHUFFLE " %1, %2, %0" : "=v"(two) : "v"(line), "v"(a));                                       \
        __asm__ volatile("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(two), "v"(b));                                        \
    } while (0)
#define FLOATS 16.0   /* products of an FMA */
#define PRODUCTS 32.0 /* of numbers of two digits */
#define KEPT(sum) __asm__ volatile("" ::"v"(sum))
#else
typedef __m256i vec;
enum { ROWS = 8 }; /* of 16 registers */
#define LOAD(p) _mm256_loadu_si256((const __m256i *)(p))
#define LINE(p) _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(p)))
#define ZERO _mm256_setzero_si256()
#define FMA(sum, a, b) __asm__ volatile("vfmadd231ps %2, %1, %0" : "+x"(sum) : "x"(a), "x"(b))
#define DIGITS(sum, a, b)                                                                                              \
    do {                                                                                                               \
        vec two;                                                                                                       \
        __asm__ volatile("vpmaddwd %2, %1, %0" : "=x"(two) : "x"(a), "x"(b));                                          \
        __asm__ volatile("vpaddd %1, %0, %0" : "+x"(sum) : "x"(two));                                                  \
    } while (0)
/* of one digit, of twice as many elements */
#define SHUFFLED(sum, line, a, b)                                                                                      \
    do {                                                                                                               \
        vec turned, two;                                                                                               \
        __asm__ volatile("vpshufb %2, %1, %0" : "=x"(turned) : "x"(line), "x"(a));                                     \
        __asm__ volatile("vpmaddubsw %2, %1, %0" : "=x"(two) : "x"(turned), "x"(b));                                   \
        __asm__ volatile("vpaddw %1, %0, %0" : "+x"(sum) : "x"(two));                                                  \
    } while (0)
#define FLOATS 8.0
#define PRODUCTS 16.0
#define KEPT(sum) __asm__ volatile("" ::"x"(sum))
#endif

static int16_t x[ROWS * PITCH + 64];
static char codes[STEPS * 64], values[STEPS * 64];

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

#define RATE(name, products, body)                                                                                     \
    do {                                                                                                               \
        double best = 1e18;                                                                                            \
        for (int tried = 0; tried < TRIES; tried++) {                                                                  \
            vec sum[ROWS];                                                                                             \
            _Pragma("GCC unroll 16") for (int r = 0; r < ROWS; r++) sum[r] = ZERO;                                      \
            double begin = now();                                                                                      \
            for (int turn = 0; turn < TURNS; turn++)                                                                   \
                for (int s = 0; s < STEPS; s++) {                                                                      \
                    vec a = LOAD(codes + 64 * s), b = LOAD(values + 64 * s);                                           \
                    _Pragma("GCC unroll 16") for (int r = 0; r < ROWS; r++) { body; }                                   \
                }                                                                                                      \
            double took = now() - begin;                                                                               \
            _Pragma("GCC unroll 16") for (int r = 0; r < ROWS; r++) KEPT(sum[r]);                                       \
            if (took < best) best = took;                                                                              \
        }                                                                                                              \
        printf("%s %.6g\n", name, products * TURNS * STEPS * ROWS / best);                                             \
    } while (0)

int main(void) {
    RATE("float", FLOATS, FMA(sum[r], a, b));
    RATE("digits", PRODUCTS, DIGITS(sum[r], a, b));
    RATE("sampled", PRODUCTS, vec line = LINE(x + r * PITCH + 8 * (s / 4 * 4)); SHUFFLED(sum[r], line, a, b));
    return 0;
}
