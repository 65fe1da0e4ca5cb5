/* Many rows of few tasks: a thread takes a block of rows of one task through the whole product.
 *
 * Digits, t and the decoded tiles of a block stay in its core's second-level cache, and the threads meet once a call
 * instead of once a step.  Numbers are those of dts.c, bit for bit: integer sums, and the same float operations.
 */
#include "rowblocks.h"

#include <stdlib.h>
#include <string.h>

#include "parallel.h"

enum {
    TILE_QUADS = 128,       /* of V a decoded tile, 32 KiB of 64-byte vectors */
    MOST_ROWS = 96,         /* of a block; decoding costs a few per cent of its products */
    NEAR_BYTES = 384 << 10, /* of digits and sums a block, beside the tiles in a second-level cache */
};

typedef struct {
    const RowBlocks *call;
    int64_t vectors, padded_n, padded_t, bytes; /* bytes: of scratch a thread */
    char *scratch;
} Plan;

static int64_t up(int64_t a, int64_t to) { return (a + to - 1) / to * to; }
static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

static void *cut(char **at, int64_t size) {
    char *piece = *at;
    *at += up(size, 64);
    return piece;
}

static void block_item(void *context, int64_t item, int worker) {
    const Plan *plan = context;
    const RowBlocks *call = plan->call;
    const Kernels *k = call->k;
    const RowBlock *block = &call->blocks[item];
    const Task *task = block->task;
    int64_t n = call->n, count = block->count, lanes = k->lanes, tile = 4 * lanes;
    int64_t width = (task->rank + 3) / 4, vectors = (4 * width + lanes - 1) / lanes;
    const uint8_t *u = call->transposed ? task->v : task->u, *v = call->transposed ? task->u : task->v;
    int64_t u_stride = call->transposed ? task->v_stride : task->u_stride;
    int64_t v_stride = call->transposed ? task->u_stride : task->v_stride;

    char *at = plan->scratch + worker * plan->bytes;
    uint8_t *decoded = cut(&at, call->tile_bytes);
    float *floats = cut(&at, 4 * (n > plan->vectors * lanes ? n : plan->vectors * lanes));
    int8_t *x_digits = cut(&at, 2 * plan->padded_n * count), *t_digits = cut(&at, 2 * plan->padded_t * count);
    uint32_t *sums = cut(&at, 4 * vectors * lanes * count);
    Digits x[MOST_ROWS], t[MOST_ROWS];
    const int8_t *digits[2 * MOST_ROWS];
    uint32_t *to[MOST_ROWS];
    const char *y[MOST_ROWS];
    char *out[MOST_ROWS];

    for (int64_t r = 0; r < count; r++) {
        const char *from = call->x + block->rows[r].row * call->x_stride;
        const float *row = (const float *)(const void *)from;
        if (call->type != FLOAT32) k->widen(from, call->type, n, floats), row = floats;
        x[r].high = x_digits + 2 * r * plan->padded_n, x[r].low = x[r].high + plan->padded_n;
        t[r].high = t_digits + 2 * r * plan->padded_t, t[r].low = t[r].high + plan->padded_t;
        k->quantise(row, n, up(n, 4), digit_limit(n), &x[r]);
    }
    memset(sums, 0, (size_t)(4 * vectors * lanes * count));
    for (int64_t n0 = 0; n0 < n; n0 += 4 * TILE_QUADS) {
        int64_t some = least(4 * TILE_QUADS, n - n0);
        for (int64_t r = 0; r < count; r++) digits[2 * r] = x[r].high + n0, digits[2 * r + 1] = x[r].low + n0;
        for (int64_t b = 0; b < width; b += lanes) {
            int bytes = (int)least(lanes, width - b);
            k->decode_ranks(v + n0 * v_stride + b, v_stride, some, bytes, decoded);
            for (int64_t r = 0; r < count; r++) to[r] = sums + r * vectors * lanes + 4 * b;
            k->multiply_ranks(count, (int)((4 * bytes + lanes - 1) / lanes), (some + 3) / 4, decoded, digits, to);
        }
    }
    for (int64_t r = 0; r < count; r++) {
        k->scale_ranks(sums + r * vectors * lanes, 4 * x[r].sum, task->sigma, x[r].scale * block->rows[r].gamma,
                       task->rank, floats);
        k->quantise(floats, task->rank, 4 * width, digit_limit(task->rank), &t[r]);
    }
    for (int64_t o = 0; o < call->m; o += tile) {
        int64_t columns = least(tile, call->m - o), size = call->type == FLOAT32 ? 4 : 2;
        for (int64_t r = 0; r < count; r++) {
            int64_t row = block->rows[r].row;
            y[r] = call->y ? call->y + row * call->y_stride + o * size : NULL;
            out[r] = call->out + row * call->out_stride + o * size;
        }
        k->decode_columns(u + o * u_stride, u_stride, columns, width, decoded);
        k->expand_block(count, width, columns, decoded, t, y, out, call->type);
    }
}

/* Rows of a block: as many as the cache holds, few enough that every thread has one. */
int64_t dts_block_rows(const Kernels *k, int threads, int64_t rows, int64_t n, int64_t rank) {
    int64_t most = NEAR_BYTES / (2 * n + 6 * (rank + k->lanes) + 1) / 3 * 3;
    most = most < 24 ? 24 : least(most, MOST_ROWS);
    return least(most, up((rows + threads - 1) / threads, 3));
}

int dts_row_blocks(RowBlocks *call, int threads, int64_t count) {
    Plan plan = {.call = call, .padded_n = up(call->n, 64)};
    int64_t most_rows = 0, rank = 0, lanes = call->k->lanes;
    for (int64_t i = 0; i < count; i++) {
        if (call->blocks[i].count > most_rows) most_rows = call->blocks[i].count;
        if (call->blocks[i].task->rank > rank) rank = call->blocks[i].task->rank;
    }
    int64_t width = (rank + 3) / 4;
    plan.vectors = (4 * width + lanes - 1) / lanes;
    plan.padded_t = up(4 * width, 64);
    call->tile_bytes = 16 * lanes * (width > TILE_QUADS ? width : TILE_QUADS);
    plan.bytes = up(call->tile_bytes, 64) + up(4 * (call->n > plan.vectors * lanes ? call->n : plan.vectors * lanes), 64) +
                 most_rows * (2 * plan.padded_n + 2 * plan.padded_t + 4 * plan.vectors * lanes) + 256;
    if (threads > count) threads = (int)count;
    if (posix_memalign((void **)&plan.scratch, 64, (size_t)(plan.bytes * threads))) return 1;
    dts_parallel(threads, count, block_item, &plan);
    free(plan.scratch);
    return 0;
}
