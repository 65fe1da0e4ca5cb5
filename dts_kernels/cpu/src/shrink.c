/* First half of a product: x to digits, t = x V, and t * sigma * gamma to digits. */
#include <stddef.h>

#include "sweep.h"

enum { NEAR = 64 }; /* rows of V that stay in the first-level cache while all their bytes are used */

/* ---- x to digits ------------------------------------------------------------------------------------------------- */

void dts_prepare_row(void *context, int64_t row, int worker) {
    Call *call = context;
    float *x = call->input_floats ? call->input_floats + row * call->n
                                  : (float *)(call->scratch + worker * call->scratch_size);
    const char *from = call->x + (call->first_row + row) * call->x_stride;
    if (call->type == FLOAT32 && !call->input_floats) x = (float *)(uintptr_t)from;
    else call->k->widen(from, call->type, call->n, x);
    if (call->inputs) call->k->quantise(x, call->n, round_up(call->n, 4), digit_limit(call->n), &call->inputs[row]);
}

/* ---- t = x V ----------------------------------------------------------------------------------------------------- */

void dts_shrink_item(void *context, int64_t item, int worker) {
    Call *call = context;
    const Kernels *k = call->k;
    const int64_t *work = call->work + 5 * item;
    const Segment *s = &call->segments[work[0]];
    int64_t begin = s->groups * work[1] / work[2], end = s->groups * (work[1] + 1) / work[2], tile = 4 * k->lanes;
    Pair *pairs = call->pairs + work[3];
    int64_t count = work[4];
    if (begin == end) return;
    if (s->exact) {
        int64_t at = begin * k->lanes, bytes = least(end * k->lanes, s->width) - at;
        for (int64_t p = 0; p < count; p++)
            k->shrink_float(call->input_floats + pairs[p].row * call->n, s->v + at, s->v_stride, call->n, bytes,
                            s->v_values, pairs[p].t + at, s->plane);
        return;
    }
    const int8_t *digits[2 * MOST_PAIRS];
    uint32_t *sums[MOST_PAIRS];
    uint8_t *decoded = (uint8_t *)call->scratch + worker * call->scratch_size;
    int64_t step = s->direct ? NEAR : 4 * CHUNK;
    for (int64_t n0 = 0; n0 < call->n; n0 += step) {
        int64_t rows = least(step, call->n - n0);
        const uint8_t *v = s->v + n0 * s->v_stride;
        int64_t ahead = least(NEAR, call->n - n0 - rows); /* rows to fetch meanwhile, some for each group */
        for (int64_t p = 0; p < count; p++) {
            digits[2 * p] = call->inputs[pairs[p].row].high + n0;
            digits[2 * p + 1] = call->inputs[pairs[p].row].low + n0;
        }
        for (int64_t g = begin; g < end; g++) {
            int bytes = (int)least(k->lanes, s->width - g * k->lanes);
            for (int64_t p = 0; p < count; p++) sums[p] = pairs[p].sums + g * tile;
            if (s->direct) {
                int64_t row = rows + ahead * (g - begin) / (end - begin),
                        last = rows + ahead * (g - begin + 1) / (end - begin);
                for (; row < last; row++)
                    for (int64_t at = begin * k->lanes; at < end * k->lanes; at += 64)
                        __builtin_prefetch(v + row * s->v_stride + at);
                k->shrink((int)count, v + g * k->lanes, s->v_stride, rows, bytes, digits, sums);
            } else {
                k->decode_v(v + g * k->lanes, s->v_stride, rows, bytes, decoded);
                k->multiply(count, bytes_of(rows), decoded, digits, sums);
            }
        }
    }
}

/* t * sigma * gamma of one pair, as floats in planes or as digits. */
void dts_scale_item(void *context, int64_t item, int worker) {
    Call *call = context;
    const Kernels *k = call->k;
    Pair *pair = &call->pairs[item];
    const Segment *s = NULL;
    for (int64_t i = 0; i < call->segment_count; i++)
        if (item >= call->segments[i].first && item < call->segments[i].first + call->segments[i].count)
            s = &call->segments[i];
    const float *sigma = s->task->sigma;
    int64_t rank = s->task->rank;
    if (s->exact) {
        for (int i = 0; i < 4; i++)
            for (int64_t j = 0; j < s->plane; j++)
                pair->t[i * s->plane + j] *= 4 * j + i < rank ? sigma[4 * j + i] * pair->gamma : 0.0f;
        return;
    }
    float *t = (float *)(call->scratch + worker * call->scratch_size);
    const Digits *x = &call->inputs[pair->row];
    float scale = x->scale * pair->gamma;
    uint32_t offset = 4 * x->sum;
    for (int64_t g = 0; g < s->groups; g++)
        for (int i = 0; i < 4; i++) {
            const uint32_t *sums = pair->sums + (4 * g + i) * k->lanes;
            float *to = t + 4 * g * k->lanes + i;
            for (int j = 0; j < k->lanes; j++) to[4 * j] = (float)(int32_t)(sums[j] - offset);
        }
    for (int64_t r = 0; r < rank; r++) t[r] *= sigma[r] * scale;
    if (!s->direct) {
        k->quantise(t, rank, 4 * s->width, digit_limit(rank), &pair->digits);
        return;
    }
    Digits flat = {(int8_t *)(t + 4 * s->plane), (int8_t *)(t + 4 * s->plane) + 4 * s->plane, 0, 0};
    k->quantise(t, rank, 4 * s->plane, digit_limit(rank), &flat);
    for (int i = 0; i < 4; i++)
        for (int64_t j = 0; j < s->plane; j++) {
            pair->digits.high[i * s->plane + j] = flat.high[4 * j + i];
            pair->digits.low[i * s->plane + j] = flat.low[4 * j + i];
        }
    pair->digits.scale = flat.scale;
    pair->digits.sum = flat.sum;
}
