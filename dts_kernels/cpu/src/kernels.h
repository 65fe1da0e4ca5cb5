/* What one instruction set offers: the table that every variant fills. */
#ifndef DTS_KERNELS_H
#define DTS_KERNELS_H
#include "samples.h"
#include "sizes.h"

enum { MAX_ROWS = 3 }; /* rows of one task that a product keeps in registers at once */

/* A row of numbers as  scale * (256 * high + low):  16 bits in two digits of 8, exact in integer products. */
typedef struct {
    int8_t *high, *low;
    float scale;
    uint32_t sum; /* of 256 * high + low, modulo 2^32 */
} Digits;

typedef struct { /* where a row of a block is in a tile of y and out (y NULL: zeros) */
    const char *y;
    char *out;
    float gamma;
} BlockRow;

typedef struct {
    const char *name;
    int lanes;       /* int32 lanes of a register: 16, 8 or 4; a tile has 4 * lanes columns */
    int direct_rows; /* up to this many rows of a task, codes are expanded in registers for each pass */
    int block_digit; /* bytes of a number in a row block's `high`: 1, or 2 where that holds both digits as int16 */
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
    /* value + 4 as bytes [quads][tile][4]: four ranks of a tile's columns of u; four rows of v beside each other */
    void (*decode_columns)(const uint8_t *u, int64_t stride, int64_t rows, int64_t bytes, uint8_t *tile);
    void (*decode_v)(const uint8_t *v, int64_t stride, int64_t n, int bytes, uint8_t *tile);
    /* sums[r][column] += digits[r] . tile[.][column] */
    void (*multiply)(int64_t rows, int64_t quads, const uint8_t *tile, const int8_t *const *digits,
                     uint32_t *const *sums);
    /* row blocks, see variant_blocks.h for their tiles: the same four steps over all rows of a block */
    void (*quantise_block)(const float *x, int64_t count, int64_t padded, int limit, Digits *out);
    void (*decode_ranks)(const uint8_t *v, int64_t stride, int64_t n, int bytes, uint8_t *tile);
    void (*multiply_ranks)(int64_t rows, int vectors, int64_t quads, const uint8_t *tile, const int8_t *const *digits,
                           uint32_t *const *sums);
    void (*scale_ranks)(const uint32_t *sums, uint32_t offset, const float *sigma, float scale, int64_t rank, float *t);
    void (*decode_block)(const uint8_t *u, int64_t stride, int64_t rows, int64_t bytes, uint8_t *tile);
    /* add: the task's addend of these columns, or NULL */
    void (*expand_block)(int64_t rows, int64_t quads, int64_t columns, const uint8_t *tile, const Digits *t,
                         const BlockRow *row, const float *add, int dtype);
    /* the same two products in float32, exact for any four values; t is [4][plane] */
    void (*shrink_float)(const float *x, const uint8_t *v, int64_t stride, int64_t n, int64_t bytes,
                         const float *values, float *t, int64_t plane);
    float (*expand_float)(const uint8_t *u, int64_t bytes, const float *values, const float *t, int64_t plane);
    /* sampled elements, see variant_samples.h: few rows (1, 2, 4 or 8), and panels of lanes * (1, 2 or 4) rows */
    void (*samples_gather)(const SamplePart *part, int last, int digits, int rows, const float *const *x,
                           const float *factor, float *const *sums, float *const *y);
    void (*samples_scatter)(const SamplePart *part, int rows, const float *const *x, float *const *out);
    void (*samples_panel)(const SamplePart *part, int scattered, int vectors, const float *x, float *sums);
    /* of strides up to `turns` (0: none) and all groups, in digits; see variant_turns.h */
    int turns, turn_pitch; /* turn_pitch: numbers from group to group, at least */
    float (*samples_whole)(const float *x, int64_t count, int limit, float *out);
    float (*samples_lay)(const float *x, int64_t count, int64_t stride, int limit, int16_t *out);
    void (*samples_turned)(const SamplePart *part, int rows, const int16_t *const *x, const float *factor,
                           const float *const *y, float *const *out);
    /* row [n] += factor * elements [first, last) of row `id` of D, at most MOST_GROUPS, from the first of a window on */
    void (*samples_row)(const Sample *s, int64_t id, int64_t first, int64_t last, float factor, int64_t n, float *row);
    /* out [n]: codes of 3, 4 or 8 bits times their scales, see rounded.h */
    void (*numbers)(const uint8_t *codes, const uint16_t *scales, int bits, int64_t n, float *out);
    /* see dts_round_components */
    void (*round_components)(float *factor, int64_t factor_stride, float *misfit, int64_t misfit_stride,
                             const float *weights, int64_t weights_stride, const float *step, int64_t count,
                             int64_t columns);
} Kernels;

/* The variant of a name, NULL where this machine cannot run it. */
const Kernels *dts_find(const char *name);

/* Whether a sample's products x D^T are of digits, whatever the rows and their number. */
static inline int in_digits(const Kernels *k, const Sample *s) { return s->stride <= k->turns && s->window == 1; }

/* Bytes of a row of x as samples_lay has it. */
static inline int64_t laid_bytes(const Kernels *k, const Sample *s, int64_t n) {
    return 2 * round_up(round_up(ceil_div(n, s->stride), 2) * turned_pitch(s->stride, k->turn_pitch), 32);
}

/* Digits so large that a sum over `count` products with values up to 4 fits 32 bits. */
static inline int digit_limit(int64_t count) { return count <= 16384 ? 32512 : (int)(32512 * 16384 / count); }

#endif
