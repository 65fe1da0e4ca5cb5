/* A sweep: some rows of x and all their tasks, in steps that the threads take together (sweep.c).
 *
 * A pair is a row of x and a task it uses.  The steps: digits of every row, t = x V per pair, digits of
 * t * sigma * gamma (shrink.c), then y += t U^T, tile by tile of outputs over all pairs of the tile's rows (expand.c).
 */
#ifndef DTS_SWEEP_H
#define DTS_SWEEP_H
#include "kernels.h"
#include "rounded.h"
#include "task.h"

enum {
    CHUNK = 512,      /* quads of a decoded tile: 128 KiB, inside a second-level cache */
    MOST_PAIRS = 256, /* of one sweep over the factors; more rows sweep again */
    NARROW = 16,      /* bytes a row below which a decoded tile beats horizontal sums */
};

typedef struct {
    int32_t row, task;
    float gamma;
    Digits digits;  /* of t * sigma * gamma: in rank order, or [4][plane] for rows done directly */
    float *t;       /* float path: [4][plane] */
    uint32_t *sums; /* [groups][tile] */
} Pair;

typedef struct { /* the pairs of one task, beside each other */
    int64_t first, count;
    const Task *task;
    const uint8_t *u, *v;
    int64_t u_stride, v_stride, width, groups, plane;
    float u_values[4], v_values[4];
    int exact, direct;
} Segment;

typedef struct Block {
    struct Block *next;
} Block;

typedef struct {
    const Kernels *k;
    int exact, threads, type;
    int64_t n, m, first_row, rows;
    const char *x, *y;
    char *out;
    int64_t x_stride, y_stride, out_stride; /* bytes */
    const int32_t *slots;                   /* [entries, places], `each` rows an entry; NULL: reconstruct */
    const float *weights;
    Addends adds;
    int64_t each, places;
    Segment *segments;
    int64_t segment_count;
    Pair *pairs;
    int64_t pair_count;
    uint8_t *used;       /* rows with a task or an addend; others are copied as they are; NULL: all */
    Digits *inputs;      /* of the rows of x */
    float *input_floats; /* [rows, n] for the float path */
    int64_t *work;       /* shrink: segment, part, parts, first pair, pairs of every item */
    char *scratch;       /* scratch_size bytes a thread */
    int64_t scratch_size;
    Block *blocks;
    int failed;
} Call;

/* Four values: the levels, or without them those of all codes. */
void dts_fill_values(const float *levels, float *values);

/* The segment of a task with `count` pairs from `first` on. */
Segment dts_segment(const Call *call, const Task *task, int transposed, int64_t first, int64_t count);

/* Memory that lives until it is given back.  NULL (and call->failed) when there is none. */
void *dts_take(Call *call, int64_t size);
void dts_give_back(Call *call);

/* Memory of every pair's sums and digits (or float t), and of the threads. */
void dts_take_pairs(Call *call, const Segment *s, int with_sums);
void dts_take_scratch(Call *call);

/* y = or += the delta of the rows and pairs that the call holds. */
void dts_sweep(Call *call);

/* The steps, a context of Call each, an item a time. */
void dts_prepare_row(void *context, int64_t row, int worker);
void dts_shrink_item(void *context, int64_t item, int worker);
void dts_scale_item(void *context, int64_t item, int worker);
void dts_expand_item(void *context, int64_t item, int worker);

#endif
