/* The library against a plain double product, for machines and builds without Python: sanitizers, emulated Arm.
 * Every buffer has exactly the bytes it needs, so that a sanitizer sees any read past an end. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dts.h"

#pragma GCC diagnostic ignored "-Wmissing-field-initializers" /* what a record ends in may be left out */
#define DELTA_LINEAR(...) dts_delta_linear(&(DeltaLinear){__VA_ARGS__})
#define EMBEDDING(...) dts_embedding(&(Embedding){__VA_ARGS__})
#define ADD_SAMPLES(...) dts_add_samples(&(AddSamples){__VA_ARGS__})
#define ROUNDED_ROWS(...) dts_rounded_rows(&(RoundedRows){__VA_ARGS__})
#define ADD_SAMPLED_ROWS(...) dts_add_sampled_rows(&(AddSampledRows){__VA_ARGS__})

static uint64_t state = 88172645463325252ull;
static uint32_t any(void) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 16);
}
static float number(void) { return (float)(any() % 20001) / 10000.0f - 1.0f; }
static void *exactly(int64_t size) { return malloc((size_t)(size ? size : 1)); }

static int value_at(const uint8_t *row, int64_t rank) {
    static const int values[4] = {1, 4, -1, -4}; /* its own: not those of the library that it tests */
    return values[row[rank / 4] >> 2 * (rank % 4) & 3];
}
static double level_at(const uint8_t *row, int64_t rank, const float *levels) {
    return levels ? levels[row[rank / 4] >> 2 * (rank % 4) & 3] : value_at(row, rank);
}

/* What does not fit is refused before any of it is read or written. */
static int refuses(const char *variant, const float *x, float *out, const float *add, const Task *task, int64_t m,
                   int64_t n, int64_t rows) {
    int32_t slots[8] = {0};
    float gammas[8] = {1};
    int failed = 0;
    struct {
        int64_t x, out, slots, weights, entries, places, adds, m, n;
        int type;
    } good = {rows * n, rows * m, 1, 1, 1, 1, m, m, n, FLOAT32},
      bad[] = {good, good, good, good, good, good, good, good, good, good, good};
    bad[0].x--, bad[1].out--, bad[2].slots = 0, bad[3].weights = 0, bad[4].entries = 0, bad[5].entries = rows + 1;
    bad[6].places = 2, bad[7].adds--, bad[8].m++, bad[9].n++, bad[10].type = 3;
    bad[5].slots = bad[5].weights = rows + 1 < 8 ? rows + 1 : 8;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        failed |= DELTA_LINEAR(variant, 2, 0, 0, x, bad[i].x, bad[i].type, n * 4, rows, bad[i].n, NULL, 0, 0, out,
                               bad[i].out, m * 4, bad[i].m, task, 1, slots, bad[i].slots, gammas, bad[i].weights,
                               bad[i].entries, bad[i].places, add, bad[i].adds, NULL, 1) != 4;
    Task wrong[] = {*task, *task, *task, *task, *task};
    wrong[0].u_rows--, wrong[1].v_rows++, wrong[2].u_bytes--, wrong[3].sigma_count--, wrong[4].sigma = NULL;
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        failed |= DELTA_LINEAR(variant, 2, 0, 0, x, rows * n, FLOAT32, n * 4, rows, n, NULL, 0, 0, out, rows * m, m * 4,
                               m, &wrong[i], 1, slots, 1, gammas, 1, 1, 1, NULL, 0, NULL, 0) != 4;
    failed |= DELTA_LINEAR(variant, 2, 0, 0, NULL, rows * n, FLOAT32, n * 4, rows, n, NULL, 0, 0, out, rows * m, m * 4,
                           m, task, 1, slots, 1, gammas, 1, 1, 1, NULL, 0, NULL, 0) != 4;
    if (failed) printf("FAILED %s: what does not fit was taken\n", variant);
    return failed;
}

static int check(const char *variant, int64_t m, int64_t n, int64_t rank, int64_t rows, int with_levels, int exact) {
    int64_t width = (rank + 3) / 4;
    static float levels[8] = {0.5f, 2.0f, -0.75f, -3.0f, 0.25f, 1.5f, -0.5f, -2.5f};
    uint8_t *u = exactly(m * width), *v = exactly(n * width);
    float *sigma = exactly(rank * 4), *x = exactly(rows * n * 4), *out = exactly(rows * m * 4),
          *dense = exactly(m * n * 4);
    for (int64_t i = 0; i < m * width; i++) u[i] = (uint8_t)any();
    for (int64_t i = 0; i < n * width; i++) v[i] = (uint8_t)any();
    for (int64_t i = 0; i < rank; i++) sigma[i] = 1.0f + number() / 2;
    for (int64_t i = 0; i < rows * n; i++) x[i] = number();
    for (int64_t i = 0; i < rows * m; i++) out[i] = NAN;
    Task task = {u, v, sigma, with_levels ? levels : NULL, width, width, rank, NULL, m, n, width, width, rank, 0};
    float *add = exactly(m * 4);
    for (int64_t i = 0; i < m; i++) add[i] = number();
    int32_t slot = 0;
    float gamma = 0.5f;
    int failed = DELTA_LINEAR(variant, 2, exact, 0, x, rows * n, FLOAT32, n * 4, rows, n, NULL, 0, 0, out, rows * m,
                              m * 4, m, &task, 1, &slot, 1, &gamma, 1, 1, 1, add, m, NULL, 1);
    failed |= dts_reconstruct(variant, 2, exact, &task, 1, &gamma, 1, NULL, 0, dense, m * n, n * 4, FLOAT32, m, n);
    failed |= refuses(variant, x, out, add, &task, m, n, rows);
    double wrong = 0, all = 0, dense_wrong = 0, dense_all = 0;
    double *t = exactly(rank * 8);
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t k = 0; k < rank; k++) {
            t[k] = 0;
            for (int64_t i = 0; i < n; i++)
                t[k] += x[r * n + i] * level_at(v + i * width, k, with_levels ? levels + 4 : NULL);
            t[k] *= sigma[k] * gamma;
        }
        for (int64_t o = 0; o < m; o++) {
            double y = gamma * add[o];
            for (int64_t k = 0; k < rank; k++) y += t[k] * level_at(u + o * width, k, with_levels ? levels : NULL);
            wrong += (y - out[r * m + o]) * (y - out[r * m + o]);
            all += y * y;
        }
    }
    for (int64_t o = 0; o < m; o++)
        for (int64_t i = 0; i < n; i++) {
            double w = 0;
            for (int64_t k = 0; k < rank; k++)
                w += gamma * sigma[k] * level_at(u + o * width, k, with_levels ? levels : NULL) *
                     level_at(v + i * width, k, with_levels ? levels + 4 : NULL);
            dense_wrong += (w - dense[o * n + i]) * (w - dense[o * n + i]);
            dense_all += w * w;
        }
    /* rows of the dense matrix through a lookup that turns them around, the last id meaning none */
    int64_t *ids = exactly((m + 1) * 8);
    int32_t *lookup = exactly((m + 1) * 4);
    float *rows_of = exactly((m + 1) * n * 4);
    for (int64_t o = 0; o <= m; o++) ids[o] = o, lookup[o] = o < m ? (int32_t)(m - 1 - o) : -1;
    task.lookup = lookup, task.lookup_count = m + 1;
    if (!with_levels) {
        failed |= EMBEDDING(variant, 2, ids, m + 1, m + 1, NULL, rows_of, (m + 1) * n, FLOAT32, n, &task, 1, &slot,
                            &gamma, 1);
        for (int64_t i = 0; i < n; i++) failed |= rows_of[m * n + i] != 0;
        double off = 0;
        for (int64_t o = 0; o < m; o++)
            for (int64_t i = 0; i < n; i++) off += pow(rows_of[o * n + i] - dense[(m - 1 - o) * n + i], 2);
        failed |= !(off <= 1e-7 * dense_all);
        failed |= EMBEDDING(variant, 2, ids, m + 1, m, NULL, rows_of, (m + 1) * n, FLOAT32, n, &task, 1, &slot, &gamma,
                            1) != 3;
        failed |= EMBEDDING(variant, 2, ids, m + 1, m + 2, NULL, rows_of, (m + 1) * n, FLOAT32, n, &task, 1, &slot,
                            &gamma, 1) != 4;
        lookup[0] = (int32_t)m;
        failed |= EMBEDDING(variant, 2, ids, m + 1, m + 1, NULL, rows_of, (m + 1) * n, FLOAT32, n, &task, 1, &slot,
                            &gamma, 1) != 4;
    }
    free(ids), free(lookup), free(rows_of), free(add);
    float *numbers = exactly(n * width * 16);
    failed |= dts_unpack(variant, 2, v, width, n, width, NULL, numbers, n * width * 4, width * 16, FLOAT32);
    for (int64_t i = 0; i < n; i++)
        for (int64_t k = 0; k < 4 * width; k++)
            failed |= numbers[i * 4 * width + k] != (float)value_at(v + i * width, k);
    failed |= !(wrong <= 1e-7 * all) || !(dense_wrong <= 1e-7 * dense_all);
    if (failed)
        printf("FAILED %s m=%ld n=%ld rank=%ld rows=%ld levels=%d exact=%d: %g, %g\n", variant, (long)m, (long)n,
               (long)rank, (long)rows, with_levels, exact, sqrt(wrong / all), sqrt(dense_wrong / dense_all));
    free(u), free(v), free(sigma), free(x), free(out), free(dense), free(t), free(numbers);
    return failed;
}

static uint32_t hash_of(const Sample *s, int64_t row, int64_t group) {
    uint32_t h = s->seed + 0x9E3779B1u * (uint32_t)(row / s->stride) + 0x85EBCA77u * (uint32_t)group;
    h = (h ^ h >> 16) * 0x85EBCA6Bu;
    h = (h ^ h >> 13) * 0xC2B2AE35u;
    return h ^ h >> 16;
}

static int64_t sampled_column(const Sample *s, int64_t row, int64_t element) {
    int64_t w = s->window, first = element / s->kept * w, turn = hash_of(s, row, -1 - first / 64) >> 26;
    int64_t group = first + ((w >> element % s->kept) % w ^ turn % w);
    return group * s->stride + (row + ((hash_of(s, row, group) >> 16) * (uint32_t)s->stride >> 16)) % s->stride;
}

/* Components and samples in one call: the bits of one after the other, whether row blocks take both or not; and nothing
 * is written where the samples do not fit. */
static int check_together(const char *variant, const Sample *samples, int transposed, int64_t m, int64_t n,
                          int64_t rows, const float *x, const float *y) {
    int64_t in = transposed ? m : n, columns = transposed ? n : m, rank = 9, width = 3, starts[4] = {0, 0, 1, 3};
    uint8_t *u = exactly(columns * width), *v = exactly(in * width);
    float sigma[9], *once = exactly(rows * columns * 4), *then = exactly(rows * columns * 4);
    for (int64_t i = 0; i < columns * width; i++) u[i] = (uint8_t)any();
    for (int64_t i = 0; i < in * width; i++) v[i] = (uint8_t)any();
    for (int64_t i = 0; i < rank; i++) sigma[i] = 0.1f + (float)i;
    Task task = {u, v, sigma, NULL, width, width, rank, NULL, columns, in, width, width, rank, 0};
    Task tasks[] = {task, task, task};
    Sample of[] = {samples[0], samples[0], samples[1]};
    int failed = 0;
    for (int kind = 0; kind < 4; kind++) { /* without a sample, with one, with two; rows of the first two in turns */
        int64_t entries = kind == 3 ? rows : 1;
        int32_t *slots = exactly(entries * 4);
        float *gammas = exactly(entries * 4);
        for (int64_t i = 0; i < entries; i++) slots[i] = kind == 3 ? (int)(i % 3) - 1 : kind, gammas[i] = -0.5f;
        for (int threads = 1; threads < 3; threads++) {
            for (int64_t i = 0; i < rows * columns; i++) once[i] = NAN;
            failed |= DELTA_LINEAR(variant, threads, 0, 0, x, rows * in, FLOAT32, in * 4, rows, in, y, rows * columns,
                                   columns * 4, once, rows * columns, columns * 4, columns, tasks, 3, slots, entries,
                                   gammas, entries, entries, 1, NULL, 0, NULL, 0, of, 3, starts, 3, transposed);
            failed |= DELTA_LINEAR(variant, threads, 0, 0, x, rows * in, FLOAT32, in * 4, rows, in, y, rows * columns,
                                   columns * 4, then, rows * columns, columns * 4, columns, tasks, 3, slots, entries,
                                   gammas, entries, entries, 1);
            failed |=
                ADD_SAMPLES(variant, threads, 0, transposed, x, rows * in, FLOAT32, rows, m, n, then, rows * columns,
                            then, rows * columns, of, 3, starts, 3, slots, entries, gammas, entries, entries, 1);
            failed |= memcmp(once, then, (size_t)(rows * columns) * 4) != 0;
        }
        for (int64_t i = 0; i < rows * columns; i++) once[i] = 7;
        failed |=
            DELTA_LINEAR(variant, 1, 0, 0, x, rows * in, FLOAT32, in * 4, rows, in, y, rows * columns, columns * 4,
                         once, rows * columns, columns * 4, columns, tasks, 3, slots, entries, gammas, entries, entries,
                         1, NULL, 0, NULL, 0, of, 2, starts, 3, transposed) != (kind == 2 ? 4 : 0);
        for (int64_t i = 0; kind == 2 && i < rows * columns; i++) failed |= once[i] != 7;
        free(slots), free(gammas);
    }
    free(u), free(v), free(once), free(then);
    if (failed)
        printf("FAILED %s together m=%ld n=%ld stride=%ld rows=%ld transposed=%d\n", variant, (long)m, (long)n,
               (long)samples[0].stride, (long)rows, transposed);
    return failed;
}

/* Two samples of one task, of different strides and the second thinned; the codes of a row end where the memory does. */
static int check_samples(const char *variant, int64_t m, int64_t n, int64_t stride, int64_t rows, int transposed) {
    int64_t in = transposed ? m : n, columns = transposed ? n : m, starts[2] = {0, 2};
    float *x = exactly(rows * in * 4), *y = exactly(rows * columns * 4), *out = exactly(rows * columns * 4);
    double *want = exactly(rows * columns * 8);
    for (int64_t i = 0; i < rows * in; i++) x[i] = number();
    for (int64_t i = 0; i < rows * columns; i++) want[i] = y[i] = number();
    Sample samples[2];
    float gamma = -0.5f;
    int32_t slot = 0;
    for (int k = 0; k < 2; k++) {
        int64_t own = stride + 3 * k, kept = k ? 1 + 2 * (rows % 2) : 1, window = k ? 4 << rows % 5 : 1;
        int64_t elements = kept * (((n + own - 1) / own + window - 1) / window), width = (elements + 3) / 4;
        uint8_t *codes = exactly(m * width);
        for (int64_t i = 0; i < m * width; i++) codes[i] = (uint8_t)any();
        samples[k] = (Sample){codes, width, own, any(), 0.25f, m, width, kept, window};
        for (int64_t i = 0; i < m; i++)
            for (int64_t g = 0; g < elements; g++) {
                int64_t c = sampled_column(&samples[k], i, g);
                double w = gamma * 0.25 * value_at(codes + i * width, g);
                for (int64_t r = 0; r < rows && c < n; r++)
                    want[r * columns + (transposed ? c : i)] += w * x[r * in + (transposed ? i : c)];
            }
    }
    int failed = 0;
    double wrong = 0, all = 0;
    for (int exact = 0; exact < 2; exact++) { /* digits of small strides, then float32 */
        failed |= ADD_SAMPLES(variant, 2, exact, transposed, x, rows * in, FLOAT32, rows, m, n, y, rows * columns, out,
                              rows * columns, samples, 2, starts, 1, &slot, 1, &gamma, 1, 1, 1);
        wrong = all = 0;
        for (int64_t i = 0; i < rows * columns; i++) wrong += pow(out[i] - want[i], 2), all += want[i] * want[i];
        failed |= !(wrong <= (exact ? 1e-10 : 1e-8) * all);
    }
    for (int k = 0; k < 6; k++) { /* a number, a sample, a row of codes, bytes of it or a share that are not there */
        Sample less[2] = {samples[0], samples[1]};
        less[1].rows -= k == 2, less[1].bytes -= k == 3;
        if (k == 4) less[1].kept = 2;
        if (k == 5) less[1].window = 128;
        failed |=
            ADD_SAMPLES(variant, 2, 0, transposed, x, rows * in - (k == 0), FLOAT32, rows, m, n, y, rows * columns, out,
                        rows * columns, less, 2 - (k == 1), starts, 1, &slot, 1, &gamma, 1, 1, 1) != 4;
    }
    int64_t *ids = exactly(3 * 8);
    float *row = exactly(3 * n * 4), *zeros = exactly(3 * n * 4);
    ids[0] = m - 1, ids[1] = -1, ids[2] = 0;
    memset(zeros, 0, (size_t)(3 * n) * 4);
    failed |= ADD_SAMPLED_ROWS(variant, 2, ids, 3, m, n, zeros, 3 * n, row, 3 * n, FLOAT32, samples, 2, starts, 1,
                               &slot, 1, &gamma, 1, 1, 1);
    for (int64_t i = 0; i < 3; i++)
        for (int64_t c = 0; c < n; c++) {
            double wanted = 0;
            for (int k = 0; k < 2 && ids[i] >= 0; k++)
                for (int64_t g = 0; g < samples[k].kept * (n / samples[k].stride / samples[k].window + 1); g++)
                    if (g / samples[k].kept * samples[k].window * samples[k].stride < n &&
                        sampled_column(&samples[k], ids[i], g) == c)
                        wanted += gamma * 0.25 * value_at(samples[k].codes + ids[i] * samples[k].row_bytes, g);
            failed |= row[i * n + c] != (float)wanted;
        }
    free(ids), free(row), free(zeros);
    failed |= check_together(variant, samples, transposed, m, n, rows, x, y);
    if (failed)
        printf("FAILED %s samples m=%ld n=%ld stride=%ld rows=%ld transposed=%d: %g\n", variant, (long)m, (long)n,
               (long)stride, (long)rows, transposed, sqrt(wrong / all));
    free(x), free(y), free(out), free(want), free((void *)samples[0].codes), free((void *)samples[1].codes);
    return failed;
}

/* Number i of a vector in few bits: bit j of it is bit `bits` i + j of the bytes. */
static float rounded_at(const uint8_t *codes, const uint16_t *scales, int bits, int64_t i) {
    int code = 0;
    float scale;
    for (int j = 0; j < bits; j++) code |= (codes[(i * bits + j) / 8] >> (i * bits + j) % 8 & 1) << j;
    if (code >> (bits - 1)) code -= 1 << bits;
    uint32_t word = (uint32_t)scales[i / 64] << 16;
    memcpy(&scale, &word, sizeof scale);
    return scale * (float)code;
}

/* Vectors of 3, 4 and 8 bits, in float32 and none, whose products and sums have the bits of the same in float32. */
static int check_vectors(const char *variant, int64_t m, int64_t n, int64_t rows) {
    enum { SLOTS = 5 };
    static const int bits[SLOTS] = {3, 0, 4, 8, 32};
    uint8_t *codes[SLOTS], u[9 * 3], v[9 * 3];
    uint16_t *scales[SLOTS];
    Rounded given[SLOTS];
    float *stack = exactly(SLOTS * m * 4), *made = exactly((SLOTS + 2) * m * 4), sigma[9];
    for (int s = 0; s < SLOTS; s++) {
        int64_t size = (bits[s] * m + 7) / 8, groups = (m + 63) / 64;
        codes[s] = exactly(size), scales[s] = exactly(groups * 2);
        for (int64_t i = 0; i < size; i++) codes[s][i] = (uint8_t)any();
        for (int64_t i = 0; i < groups; i++) scales[s][i] = (uint16_t)(0x3c00 + any() % 512);
        for (int64_t i = 0; i < m; i++) {
            stack[s * m + i] = bits[s] == 32 ? number() : bits[s] ? rounded_at(codes[s], scales[s], bits[s], i) : 0;
            if (bits[s] == 32) memcpy(codes[s] + 4 * i, &stack[s * m + i], 4);
        }
        given[s] = (Rounded){codes[s], bits[s] == 32 ? NULL : scales[s], bits[s], m};
    }
    int32_t every[SLOTS + 2] = {4, 3, -1, 2, 1, SLOTS, 0};
    int failed = ROUNDED_ROWS(variant, given, SLOTS, every, SLOTS + 2, m, made, (SLOTS + 2) * m);
    for (int i = 0; i < SLOTS + 2; i++)
        for (int64_t c = 0; c < m; c++)
            failed |= made[i * m + c] != (every[i] < 0 || every[i] >= SLOTS ? 0 : stack[every[i] * m + c]);
    failed |= ROUNDED_ROWS(variant, given, SLOTS, every, SLOTS + 2, m, made, (SLOTS + 2) * m - 1) != 4;
    for (size_t i = 0; i < sizeof sigma / sizeof *sigma; i++) sigma[i] = 0.5f + (float)i;
    for (size_t i = 0; i < sizeof u; i++) u[i] = (uint8_t)any(), v[i] = (uint8_t)any();
    int64_t outputs = least(m, 9), inputs = least(n, 9);
    Task task = {u, v, sigma, NULL, 3, 3, 9, NULL, outputs, inputs, 3, 3, 9, 0};
    Task tasks[] = {task, task, task, task}; /* slot 4 has a vector alone */
    int32_t *slots = exactly(2 * rows * 4);
    float *gammas = exactly(2 * rows * 4), *x = exactly(rows * inputs * 4), *base = exactly(m * 4);
    for (int64_t i = 0; i < 2 * rows; i++) slots[i] = (int32_t)(any() % (SLOTS + 2)) - 1, gammas[i] = number();
    for (int64_t i = 0; i < rows * inputs; i++) x[i] = number();
    for (int64_t i = 0; i < m; i++) base[i] = number();
    float *few = exactly(rows * m * 4), *wide = exactly(rows * m * 4), *narrow = exactly(SLOTS * outputs * 4);
    for (int which = 0; which < 2; which++) {
        AddVectors sum = {variant, slots, 2 * rows, gammas, 2 * rows, rows, 2, m, 1, {{0}}};
        sum.of[0] = which ? (Vector){base, m, stack, SLOTS * m, NULL, SLOTS, wide, rows * m}
                          : (Vector){base, m, NULL, 0, given, SLOTS, few, rows * m};
        failed |= dts_add_vectors(&sum);
    }
    failed |= memcmp(few, wide, (size_t)(rows * m) * 4) != 0;
    Rounded cut[SLOTS];
    for (int s = 0; s < SLOTS; s++) {
        cut[s] = given[s], cut[s].count = outputs;
        memcpy(narrow + s * outputs, stack + s * m, (size_t)outputs * 4);
    }
    for (int64_t places = 1; places < 3; places++) /* in row blocks, and in the sweep */
        for (int which = 0; which < 2; which++)
            failed |= DELTA_LINEAR(variant, 2, 0, 0, x, rows * inputs, FLOAT32, inputs * 4, rows, inputs, NULL, 0, 0,
                                   which ? wide : few, rows * outputs, outputs * 4, outputs, tasks, 4, slots,
                                   places * rows, gammas, places * rows, rows, places, which ? narrow : NULL,
                                   which ? SLOTS * outputs : 0, which ? NULL : cut, SLOTS);
    for (int64_t i = 0; i < rows * outputs; i++) failed |= few[i] != wide[i];
    for (int wrong = 0; wrong < 4;
         wrong++) { /* vectors of other sizes, bits that there are not, nothing where they are */
        cut[3] = (Rounded){wrong == 1 ? NULL : codes[3], wrong == 3 ? NULL : scales[3], wrong == 2 ? 5 : 8,
                           outputs + (wrong == 0)};
        slots[0] = 3;
        failed |= DELTA_LINEAR(variant, 2, 0, 0, x, rows * inputs, FLOAT32, inputs * 4, rows, inputs, NULL, 0, 0, few,
                               rows * outputs, outputs * 4, outputs, tasks, 4, slots, rows, gammas, rows, rows, 1, NULL,
                               0, cut, SLOTS) != 4;
        AddVectors sum = {variant, slots, rows, gammas, rows, rows, 1, outputs, 1, {{0}}};
        sum.of[0] = (Vector){base, outputs, NULL, 0, cut, SLOTS, few, rows * outputs};
        failed |= dts_add_vectors(&sum) != 4;
    }
    if (failed) printf("FAILED %s vectors m=%ld n=%ld rows=%ld\n", variant, (long)m, (long)n, (long)rows);
    for (int s = 0; s < SLOTS; s++) free(codes[s]), free(scales[s]);
    free(stack), free(made), free(slots), free(gammas), free(x), free(base), free(few), free(wide), free(narrow);
    return failed;
}

int main(void) {
    static const int64_t sizes[][3] = {{1, 1, 1},      {3, 5, 2},      {33, 40, 64}, {100, 77, 7},
                                       {65, 257, 130}, {130, 66, 261}, {9, 2053, 5}};
    static const int64_t rows[] = {1, 2, 5, 11};
    int failed = 0;
    const char *variant;
    for (int v = 0; (variant = dts_variant(v)); v++) {
        for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
            for (size_t r = 0; r < sizeof rows / sizeof *rows; r++)
                for (int kind = 0; kind < 3; kind++)
                    failed |= check(variant, sizes[s][0], sizes[s][1], sizes[s][2], rows[r], kind == 1, kind == 2);
        static const int64_t sampled[][3] = {{1, 1, 1},       {37, 50, 7},  {5, 33, 40},
                                             {130, 1037, 13}, {300, 70, 1}, {33, 400, 16}};
        for (size_t s = 0; s < sizeof sampled / sizeof *sampled; s++)
            for (size_t r = 0; r < sizeof rows / sizeof *rows; r++)
                for (int transposed = 0; transposed < 2; transposed++)
                    for (int many = 0; many < 2; many++)
                        failed |= check_samples(variant, sampled[s][0], sampled[s][1], sampled[s][2],
                                                rows[r] + 60 * many, transposed);
        static const int64_t lengths[] = {1, 7, 8, 63, 64, 65, 129, 200};
        for (size_t s = 0; s < sizeof lengths / sizeof *lengths; s++)
            for (size_t r = 0; r < sizeof rows / sizeof *rows; r++)
                for (int many = 0; many < 2; many++)
                    failed |= check_vectors(variant, lengths[s], lengths[s] + 3, rows[r] + 60 * many);
        printf("%s done\n", variant);
    }
    return failed;
}
