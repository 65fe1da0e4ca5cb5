/* Many rows of few tasks: a thread takes a block of rows of one task through the whole product.
 *
 * Digits, t and the decoded tiles of a block stay in its core's second-level cache, and the threads meet once a call
 * instead of once a step.  Numbers are those of sweep.c, bit for bit: integer sums, and the same float operations.
 */
#include "rowblocks.h"

#include <stdlib.h>
#include <string.h>

#include "parallel.h"
#include "scratch.h"

enum {
    TILE_QUADS = 128,       /* of V a decoded tile, 32 KiB of 64-byte vectors */
    MOST_ROWS = 128,        /* of a block; decoding costs a few per cent of its products */
    NEAR_BYTES = 384 << 10, /* of digits and sums a block, beside the tiles in a second-level cache */
};

typedef struct { /* rows of one task of rank above 0 */
    const Task *task;
    const Sample *sample; /* NULL: none */
    const TaskRow *rows;
    const float *add;
    int64_t count;
} RowBlock;

typedef struct {
    const RowBlocks *call;
    const RowBlock *blocks;
    int64_t tile_bytes, padded_n, padded_t, float_bytes, laid_bytes; /* laid_bytes: a row of x for its sample */
    int64_t bytes;                                                   /* of scratch a thread */
    int64_t count, threads;
    char *scratch;
} Plan;

static void *cut(char **at, int64_t size) {
    char *piece = *at;
    *at += round_up(size, 64);
    return piece;
}

/* A row of x in float32: where it is, or in `floats`. */
static const float *row_of(const RowBlocks *call, const RowBlock *block, int64_t r, float *floats) {
    const char *from = call->x + block->rows[r].row * call->x_stride;
    if (call->type == FLOAT32) return (const float *)(const void *)from;
    call->k->widen(from, call->type, call->n, floats);
    return floats;
}

static void quantise_x(const RowBlocks *call, const RowBlock *block, float *floats, Digits *x) {
    for (int64_t r = 0; r < block->count; r++)
        call->k->quantise_block(row_of(call, block, r, floats), call->n, round_up(call->n, 4), digit_limit(call->n),
                                &x[r]);
}

/* sums[row][vector] = x V, in the order of decoded tiles. */
static void shrink(const RowBlocks *call, const RowBlock *block, const Digits *x, uint32_t *sums, uint8_t *decoded) {
    const Kernels *k = call->k;
    const Task *task = block->task;
    const uint8_t *v = call->transposed ? task->u : task->v;
    int64_t stride = call->transposed ? task->u_stride : task->v_stride, lanes = k->lanes;
    int64_t width = bytes_of(task->rank), vectors = ceil_div(4 * width, lanes);
    const int8_t *digits[2 * MOST_ROWS];
    uint32_t *to[MOST_ROWS];
    memset(sums, 0, (size_t)(4 * vectors * lanes * block->count));
    for (int64_t n0 = 0; n0 < call->n; n0 += 4 * TILE_QUADS) {
        int64_t some = least(4 * TILE_QUADS, call->n - n0);
        int64_t at = n0 * k->block_digit;
        for (int64_t r = 0; r < block->count; r++) digits[2 * r] = x[r].high + at, digits[2 * r + 1] = x[r].low + at;
        for (int64_t b = 0; b < width; b += lanes) {
            int bytes = (int)least(lanes, width - b);
            k->decode_ranks(v + n0 * stride + b, stride, some, bytes, decoded);
            for (int64_t r = 0; r < block->count; r++) to[r] = sums + r * vectors * lanes + 4 * b;
            k->multiply_ranks(block->count, (int)ceil_div(4 * bytes, lanes), bytes_of(some), decoded, digits, to);
        }
    }
}

/* x for the block's sample, and what its sums are multiplied by. */
static void lay(const RowBlocks *call, const RowBlock *block, float *floats, int16_t *const *x, float *factor) {
    const Sample *s = block->sample;
    int limit = digit_limit(sample_elements(s, call->n));
    for (int64_t r = 0; r < block->count; r++) {
        float scale = call->k->samples_lay(row_of(call, block, r, floats), call->n, s->stride, limit, x[r]);
        factor[r] = block->rows[r].gamma * s->scale * scale;
    }
}

/* out += the sample's products, of outputs [first, first + columns) */
static void add_sampled(const RowBlocks *call, const RowBlock *block, int64_t first, int64_t columns, int16_t *const *x,
                        const float *factor) {
    float *out[MOST_ROWS];
    SamplePart part = {block->sample, first, first + columns, 0, sample_elements(block->sample, call->n)};
    for (int64_t r = 0; r < block->count; r++)
        out[r] = (float *)(void *)(call->out + block->rows[r].row * call->out_stride) + first;
    call->k->samples_turned(&part, (int)block->count, (const int16_t *const *)x, factor, (const float *const *)out,
                            out);
}

/* Into a second-level cache, while a block's part `part` of `parts` is multiplied: as much of x of the thread's next one,
 * which the layer before left further away. */
static void fetch_next(const Plan *plan, int64_t item, int64_t part, int64_t parts) {
    const RowBlocks *call = plan->call;
    const RowBlock *next = &plan->blocks[item + plan->threads];
    int64_t bytes = call->n * size_of(call->type);
    if (item + plan->threads >= plan->count || !call->x || next->count * bytes > NEAR_BYTES) return;
    for (int64_t r = next->count * part / parts; r < next->count * (part + 1) / parts; r++) {
        const char *row = call->x + next->rows[r].row * call->x_stride;
        for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(row + at, 0, 2);
    }
}

static void block_item(void *context, int64_t item, int worker) {
    const Plan *plan = context;
    const RowBlocks *call = plan->call;
    const Kernels *k = call->k;
    const RowBlock *block = &plan->blocks[item];
    const Task *task = block->task;
    int64_t count = block->count, lanes = k->lanes, tile = 4 * lanes;
    int64_t width = bytes_of(task->rank), vectors = ceil_div(4 * width, lanes);
    /* an embedding takes a row of u and expands it with v */
    const uint8_t *u = call->transposed || !call->x ? task->v : task->u;
    int64_t u_stride = call->transposed || !call->x ? task->v_stride : task->u_stride;

    char *at = plan->scratch + worker * plan->bytes;
    uint8_t *decoded = cut(&at, plan->tile_bytes);
    float *floats = cut(&at, plan->float_bytes);
    int8_t *x_digits = cut(&at, 2 * plan->padded_n * count), *t_digits = cut(&at, 2 * plan->padded_t * count);
    uint32_t *sums = cut(&at, 4 * vectors * lanes * count);
    char *laid = cut(&at, plan->laid_bytes * count);
    Digits x[MOST_ROWS], t[MOST_ROWS];
    BlockRow rows[MOST_ROWS];
    int16_t *words[MOST_ROWS];
    float factor[MOST_ROWS];

    for (int64_t r = 0; r < count; r++) {
        x[r].high = x_digits + 2 * r * plan->padded_n, x[r].low = x[r].high + plan->padded_n;
        t[r].high = t_digits + 2 * r * plan->padded_t, t[r].low = t[r].high + plan->padded_t;
        words[r] = (int16_t *)(void *)(laid + r * plan->laid_bytes);
    }
    if (call->x) {
        quantise_x(call, block, floats, x);
        shrink(call, block, x, sums, decoded);
    }
    if (block->sample) lay(call, block, floats, words, factor);
    for (int64_t r = 0; r < count; r++) {
        float gamma = block->rows[r].gamma;
        if (call->x)
            k->scale_ranks(sums + r * vectors * lanes, 4 * x[r].sum, task->sigma, x[r].scale * gamma, task->rank,
                           floats);
        else
            decode_row(task->u + block->rows[r].id * task->u_stride, task->rank, code_values, task->sigma, gamma,
                       floats);
        k->quantise_block(floats, task->rank, 4 * width, digit_limit(task->rank), &t[r]);
        rows[r].gamma = gamma;
    }
    for (int64_t o = 0; o < call->m; o += tile) {
        int64_t columns = least(tile, call->m - o), size = size_of(call->type);
        for (int64_t r = 0; r < count; r++) {
            int64_t row = block->rows[r].row;
            rows[r].y = call->y ? call->y + row * call->y_stride + o * size : NULL;
            rows[r].out = call->out + row * call->out_stride + o * size;
        }
        fetch_next(plan, item, o / tile, ceil_div(call->m, tile));
        k->decode_block(u + o * u_stride, u_stride, columns, width, decoded);
        k->expand_block(count, width, columns, decoded, t, rows, block->add ? block->add + o : NULL, call->type);
        if (block->sample) add_sampled(call, block, o, columns, words, factor);
    }
}

/* A row without factors: y and perhaps an addend. */
static void plain_row(const RowBlocks *call, const TaskRow *row, const float *add) {
    int64_t size = size_of(call->type);
    char *to = call->out + row->row * call->out_stride;
    const char *from = call->y ? call->y + row->row * call->y_stride : NULL;
    if (!add) {
        if (!from) memset(to, 0, (size_t)(call->m * size));
        else if (from != to) memcpy(to, from, (size_t)(call->m * size));
        return;
    }
    float part[256];
    for (int64_t o = 0; o < call->m; o += 256) {
        int64_t columns = least(256, call->m - o);
        for (int64_t c = 0; c < columns; c++) part[c] = 0.0f + row->gamma * add[o + c]; /* as expand.c: no -0 */
        call->k->narrow(part, from ? from + o * size : NULL, to + o * size, call->type, columns);
    }
}

/* Rows of a block: as many as the cache holds, few enough that every thread has one. */
static int64_t block_rows(const Kernels *k, int64_t threads, int64_t rows, int64_t n, int64_t rank) {
    int64_t most = NEAR_BYTES / (2 * n + 6 * (rank + k->lanes) + 1) / 3 * 3;
    most = most < 24 ? 24 : least(most, MOST_ROWS);
    int64_t blocks = round_up(ceil_div(rows, most), least(threads, rows)); /* of about one size */
    return least(most, round_up(ceil_div(rows, blocks), 3));
}

static int run_blocks(const RowBlocks *call, const RowBlock *blocks, int64_t count, int64_t threads) {
    Plan plan = {.call = call, .blocks = blocks, .padded_n = round_up(call->n, 64)};
    int64_t most_rows = 0, rank = 0, lanes = call->k->lanes;
    for (int64_t i = 0; i < count; i++) {
        if (blocks[i].count > most_rows) most_rows = blocks[i].count;
        if (blocks[i].task->rank > rank) rank = blocks[i].task->rank;
        int64_t laid = blocks[i].sample ? laid_bytes(call->k, blocks[i].sample, call->n) : 0;
        if (laid > plan.laid_bytes) plan.laid_bytes = laid;
    }
    int64_t width = bytes_of(rank), ranks = round_up(4 * width, lanes);
    plan.padded_t = round_up(4 * width, 64);
    plan.float_bytes = 4 * (call->n > ranks ? call->n : ranks);
    plan.tile_bytes = 16 * lanes * call->k->block_digit * (width > TILE_QUADS ? width : TILE_QUADS);
    plan.bytes = round_up(plan.tile_bytes + plan.float_bytes + 256, 64) +
                 most_rows * round_up(2 * plan.padded_n + 2 * plan.padded_t + 4 * ranks + plan.laid_bytes, 64);
    threads = least(threads, count);
    plan.count = count, plan.threads = threads;
    plan.scratch = dts_scratch((size_t)(plan.bytes * threads));
    if (!plan.scratch) return -1;
    dts_parallel((int)threads, count, block_item, &plan);
    dts_scratch_back(plan.scratch);
    return 1;
}

/* The sample of a slot, NULL where there is none to be added. */
static const Sample *sample_of(const RowBlocks *call, int64_t slot) {
    int some = call->samples && slot >= 0 && slot < call->slot_count && call->starts[slot] < call->starts[slot + 1];
    return some ? &call->samples[call->starts[slot]] : NULL;
}

/* Sort the rows by task, cut them into blocks, run those. */
int dts_row_blocks(const RowBlocks *call, int threads, const TaskRow *list, int64_t rows, int64_t from) {
    int64_t *first = calloc((size_t)call->task_count + 1, 8);
    TaskRow *sorted = malloc((size_t)rows * sizeof *sorted);
    int64_t used = 0, codes = 0, covered = 0, count = 0;
    int done = first && sorted ? 1 : -1;
    for (int64_t i = 0; done == 1 && i < rows; i++) {
        int32_t slot = list[i].slot;
        if (slot < 0 || slot >= call->task_count || !call->tasks[slot].rank) continue;
        used += !first[slot]++, covered++;
        codes += call->tasks[slot].rank * (call->n + call->m);
        if (sample_of(call, slot)) codes += call->m * sample_elements(sample_of(call, slot), call->n);
    }
    int64_t useful = dts_useful_threads(threads, codes);
    if (covered < from * used || covered < from * useful) done = 0; /* few rows of large layers: every thread on each */
    RowBlock *blocks = done == 1 ? malloc((size_t)(covered / 3 + used + 1) * sizeof *blocks) : NULL;
    if (done == 1 && !blocks) done = -1;
    for (int64_t slot = 0, at = 0; done == 1 && slot < call->task_count; slot++) {
        int64_t here = first[slot], share = used ? ceil_div(useful, used) : 1;
        first[slot] = at;
        int64_t step = here ? block_rows(call->k, share, here, call->n, call->tasks[slot].rank) : 1;
        const float *add = addend(&call->adds, slot);
        for (int64_t r = 0; r < here; r += step)
            blocks[count++] =
                (RowBlock){&call->tasks[slot], sample_of(call, slot), sorted + at + r, add, least(step, here - r)};
        at += here;
    }
    for (int64_t i = 0; done == 1 && i < rows; i++) {
        int32_t slot = list[i].slot;
        if (slot >= 0 && slot < call->task_count && call->tasks[slot].rank) sorted[first[slot]++] = list[i];
        else plain_row(call, &list[i], addend(&call->adds, slot));
    }
    if (done == 1 && count) done = run_blocks(call, blocks, count, useful);
    free(blocks), free(sorted), free(first);
    return done;
}
