/* Second half of a product: y += t U^T. */
#include <string.h>

#include "sweep.h"

enum { FETCH = 16 }; /* rows of U ahead */

static void expand_exact(const Call *call, const Segment *s, int64_t o0, int64_t columns, float *y, int64_t tile) {
    for (int64_t o = 0; o < columns; o++)
        for (int64_t p = s->first; p < s->first + s->count; p++)
            y[call->pairs[p].row * tile + o] +=
                call->k->expand_float(s->u + (o0 + o) * s->u_stride, s->width, s->u_values, call->pairs[p].t, s->plane);
}

static void expand_direct(const Call *call, const Segment *s, int64_t o0, int64_t columns, float *y, int64_t tile) {
    const Pair *pairs = call->pairs + s->first;
    const int8_t *digits[2 * MAX_ROWS];
    for (int64_t p = 0; p < s->count; p++)
        digits[2 * p] = pairs[p].digits.high, digits[2 * p + 1] = pairs[p].digits.low;
    for (int64_t o = 0; o < columns; o += 4) {
        const uint8_t *u[4];
        uint32_t sums[MAX_ROWS][4];
        for (int i = 0; i < 4; i++) {
            u[i] = s->u + (o0 + least(o + i, columns - 1)) * s->u_stride;
            if (o0 + o + i + FETCH >= call->m) continue;
            for (int64_t at = 0; at < s->width; at += 64) __builtin_prefetch(u[i] + FETCH * s->u_stride + at);
        }
        call->k->expand4((int)s->count, u, s->width, digits, s->plane, sums);
        for (int64_t p = 0; p < s->count; p++)
            for (int i = 0; i < 4 && o + i < columns; i++)
                y[pairs[p].row * tile + o + i] +=
                    pairs[p].digits.scale * (float)(int32_t)(sums[p][i] - 4 * pairs[p].digits.sum);
    }
}

static void expand_tile(const Call *call, const Segment *s, int64_t o0, int64_t columns, float *y, int64_t tile,
                        uint8_t *decoded, uint32_t *totals) {
    const Pair *pairs = call->pairs + s->first;
    const int8_t *digits[2 * MOST_PAIRS];
    uint32_t *sums[MOST_PAIRS];
    memset(totals, 0, (size_t)(s->count * tile) * sizeof *totals);
    for (int64_t p = 0; p < s->count; p++) sums[p] = totals + p * tile;
    for (int64_t j = 0; j < s->width; j += CHUNK) {
        int64_t quads = least(CHUNK, s->width - j);
        for (int64_t p = 0; p < s->count; p++)
            digits[2 * p] = pairs[p].digits.high + 4 * j, digits[2 * p + 1] = pairs[p].digits.low + 4 * j;
        call->k->decode_columns(s->u + o0 * s->u_stride + j, s->u_stride, columns, quads, decoded);
        call->k->multiply(s->count, quads, decoded, digits, sums);
    }
    for (int64_t p = 0; p < s->count; p++) {
        float scale = pairs[p].digits.scale, *to = y + pairs[p].row * tile;
        uint32_t offset = 4 * pairs[p].digits.sum;
        for (int64_t c = 0; c < columns; c++) to[c] += scale * (float)(int32_t)(sums[p][c] - offset);
    }
}

/* y = the addends of each row's tasks, times their gammas. */
static void start_tile(const Call *call, int64_t o0, int64_t columns, float *y, int64_t tile) {
    memset(y, 0, (size_t)(call->rows * tile) * sizeof *y);
    for (int64_t i = 0; call->adds.count && i < call->rows * call->places; i++) {
        int64_t at = (call->first_row + i / call->places) / call->each * call->places + i % call->places;
        const float *add = addend(&call->adds, call->slots[at]);
        if (!add) continue;
        float *to = y + i / call->places * tile;
        for (int64_t c = 0; c < columns; c++) to[c] += call->weights[at] * add[o0 + c];
    }
}

void dts_expand_item(void *context, int64_t item, int worker) {
    Call *call = context;
    int64_t tile = 4 * call->k->lanes, o0 = item * tile, columns = least(tile, call->m - o0);
    char *scratch = call->scratch + worker * call->scratch_size;
    uint8_t *decoded = (uint8_t *)scratch;
    float *y = (float *)(scratch + CHUNK * 4 * tile);
    uint32_t *totals = (uint32_t *)(y + call->rows * tile);
    start_tile(call, o0, columns, y, tile);
    for (int64_t i = 0; i < call->segment_count; i++) {
        const Segment *s = &call->segments[i];
        if (s->exact) expand_exact(call, s, o0, columns, y, tile);
        else if (s->direct) expand_direct(call, s, o0, columns, y, tile);
        else expand_tile(call, s, o0, columns, y, tile, decoded, totals);
    }
    for (int64_t r = 0; r < call->rows; r++) {
        int64_t row = call->first_row + r, at = o0 * size_of(call->type);
        if (call->used && !call->used[r]) {
            char *to = call->out + row * call->out_stride + at;
            const char *from = call->y ? call->y + row * call->y_stride + at : NULL;
            if (!from) memset(to, 0, (size_t)(columns * size_of(call->type)));
            else if (from != to) memcpy(to, from, (size_t)(columns * size_of(call->type)));
            continue;
        }
        call->k->narrow(y + r * tile, call->y ? call->y + row * call->y_stride + at : NULL,
                        call->out + row * call->out_stride + at, call->type, columns);
    }
}
