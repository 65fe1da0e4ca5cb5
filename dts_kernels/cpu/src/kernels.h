/* What one instruction set offers (the table every variant fills) and what a bank's task looks like in memory. */
#ifndef DTS_KERNELS_H
#define DTS_KERNELS_H
#include <stdint.h>

#include "samples.h"

typedef struct {
    const uint8_t *u, *v;           /* codes of [m, rank] and [n, rank], four ranks a byte, any alignment */
    const float *sigma;             /* [rank] */
    const float *levels;            /* [2, 4]: values of codes 0..3 in u and in v; NULL: +1, +4, -1, -4 */
    int64_t u_stride, v_stride;     /* bytes from row to row */
    int64_t rank;
    const int32_t *lookup;          /* embeddings: row of the matrix -> row of u or -1; NULL: the same */
    int64_t u_rows, v_rows;         /* rows there are, and bytes of a row */
    int64_t u_bytes, v_bytes;
    int64_t sigma_count, lookup_count;
} Task;

enum { FLOAT32, BFLOAT16, FLOAT16 };
enum { MAX_ROWS = 3 };              /* rows of one task that a product keeps in registers at once */

/* A row of numbers as  scale * (256 * high + low):  16 bits in two digits of 8, exact in integer products. */
typedef struct {
    int8_t *high, *low;
    float scale;
    uint32_t sum;                   /* of 256 * high + low, modulo 2^32 */
} Digits;

typedef struct {                    /* where a row of a block is in a tile of y and out (y NULL: zeros) */
    const char *y;
    char *out;
    float gamma;
} BlockRow;

typedef struct {
    const char *name;
    int lanes;                      /* int32 lanes of a register: 16, 8 or 4; a tile has 4 * lanes columns */
    int direct_rows;                /* up to this many rows of a task, codes are expanded in registers for each pass */
    /* dtype conversion; out may not alias */
    void (*widen)(const void *in, int dtype, int64_t count, float *out);
    void (*narrow)(const float *in, const void *add, void *out, int dtype, int64_t count);
    /* digits of x[count], zero up to `padded`; |256 high + low| <= limit */
    void (*quantise)(const float *x, int64_t count, int64_t padded, int limit, Digits *out);
    /* sums[r][plane * lanes + j] += sum over n of (value + 4) of rank 4j + plane, for `bytes` <= lanes bytes a row */
    void (*shrink)(int rows, const uint8_t *v, int64_t stride, int64_t n, int bytes, const int8_t *const *digits,
                   uint32_t *const *sums);
    /* sums[r][o] = sum over ranks of (value + 4) of row o of u, four rows; digits in four planes of `plane` bytes */
    void (*expand4)(int rows, const uint8_t *const *u, int64_t bytes, const int8_t *const *digits, int64_t plane,
                    uint32_t sums[][4]);
    /* value + 4 as bytes [quads][tile][4], four rows of v beside each other; the same for u, see below */
    void (*decode_v)(const uint8_t *v, int64_t stride, int64_t n, int bytes, uint8_t *tile);
    /* sums[r][column] += digits[r] . tile[.][column] */
    void (*multiply)(int64_t rows, int64_t quads, const uint8_t *tile, const int8_t *const *digits,
                     uint32_t *const *sums);
    /* row blocks, see variant_blocks.h for their tiles: the same four steps over all rows of a block */
    void (*decode_ranks)(const uint8_t *v, int64_t stride, int64_t n, int bytes, uint8_t *tile);
    void (*multiply_ranks)(int64_t rows, int vectors, int64_t quads, const uint8_t *tile, const int8_t *const *digits,
                           uint32_t *const *sums);
    void (*scale_ranks)(const uint32_t *sums, uint32_t offset, const float *sigma, float scale, int64_t rank, float *t);
    void (*decode_columns)(const uint8_t *u, int64_t stride, int64_t rows, int64_t bytes, uint8_t *tile);
    /* add: the task's addend of these columns, or NULL */
    void (*expand_block)(int64_t rows, int64_t quads, int64_t columns, const uint8_t *tile, const Digits *t,
                         const BlockRow *row, const float *add, int dtype);
    /* the same two products in float32, exact for any four values; t is [4][plane] */
    void (*shrink_float)(const float *x, const uint8_t *v, int64_t stride, int64_t n, int64_t bytes,
                         const float *values, float *t, int64_t plane);
    float (*expand_float)(const uint8_t *u, int64_t bytes, const float *values, const float *t, int64_t plane);
    /* sampled elements, see variant_samples.h: few rows (1, 2, 4 or 8), and panels of lanes * (1, 2 or 4) rows */
    void (*samples_gather)(const SamplePart *part, int last, int rows, const float *const *x, const float *factor,
                           float *const *sums, float *const *y);
    void (*samples_scatter)(const SamplePart *part, int rows, const float *const *x, float *const *out);
    void (*samples_panel)(const SamplePart *part, int scattered, int vectors, const float *x, float *sums);
} Kernels;

/* The variant of a name, NULL where this machine cannot run it. */
const Kernels *dts_find(const char *name);

static inline int64_t round_up(int64_t a, int64_t to) { return (a + to - 1) / to * to; }
static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int known_type(int type) { return type == FLOAT32 || type == BFLOAT16 || type == FLOAT16; }
static inline int64_t size_of(int type) { return type == FLOAT32 ? 4 : 2; }

/* What a call returns. */
enum { DONE, NO_MEMORY, NO_VARIANT, NO_ROW, NO_FIT };

/* Whether memory of `have` numbers holds [rows, columns] of them, rows `stride` numbers apart. */
static inline int holds(const void *memory, int64_t have, int64_t rows, int64_t columns, int64_t stride) {
    int64_t last;
    if (rows < 0 || columns < 0 || stride < 0) return 0;
    if (!rows || !columns) return 1;
    return memory && have >= columns && !__builtin_mul_overflow(rows - 1, stride, &last) && last <= have - columns;
}

/* Whether a routing of [entries, places] is there and gives every row an entry. */
static inline int routes(const int32_t *slots, int64_t slots_have, const float *weights, int64_t weights_have,
                         int64_t entries, int64_t places, int64_t rows) {
    return rows >= 0 && holds(slots, slots_have, entries, places, places) &&
           holds(weights, weights_have, entries, places, places) && (entries ? rows % entries == 0 : !rows);
}

/* Whether all of a task that is read is there, for a product with [m, n]; m < 0: any. */
static inline int task_fits(const Task *task, int64_t m, int64_t n) {
    int64_t width = (task->rank + 3) / 4;
    return !task->rank ||
           (task->rank > 0 && task->u_rows >= 0 && (m < 0 || task->u_rows == m) && task->v_rows == n &&
            width <= task->u_bytes && width <= task->v_bytes && holds(task->sigma, task->sigma_count, 1, task->rank, 0) &&
            (task->u || !task->u_rows) && (task->v || !n) && task->u_stride >= 0 && task->v_stride >= 0);
}

/* Digits so large that a sum over `count` products with values up to 4 fits 32 bits. */
static inline int digit_limit(int64_t count) { return count <= 16384 ? 32512 : (int)(32512 * 16384 / count); }

#endif
