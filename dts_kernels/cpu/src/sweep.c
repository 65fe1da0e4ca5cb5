/* One sweep: its memory, its plan and its steps. */
#include "sweep.h"

#include <string.h>

#include "parallel.h"
#include "scratch.h"

void dts_fill_values(const float *levels, float *values) {
    memcpy(values, levels ? levels : code_values, sizeof code_values);
}

Segment dts_segment(const Call *call, const Task *task, int transposed, int64_t first, int64_t count) {
    Segment s = {.first = first, .count = count, .task = task};
    int lanes = call->k->lanes;
    s.u = transposed ? task->v : task->u, s.u_stride = transposed ? task->v_stride : task->u_stride;
    s.v = transposed ? task->u : task->v, s.v_stride = transposed ? task->u_stride : task->v_stride;
    s.width = bytes_of(task->rank);
    s.groups = ceil_div(s.width, lanes);
    s.plane = round_up(s.width, 64);
    dts_fill_values(task->levels ? task->levels + (transposed ? 4 : 0) : NULL, s.u_values);
    dts_fill_values(task->levels ? task->levels + (transposed ? 0 : 4) : NULL, s.v_values);
    s.exact = call->exact || task->levels;
    s.direct = count <= call->k->direct_rows && s.width >= NARROW;
    return s;
}

void *dts_take(Call *call, int64_t size) {
    Block *block = dts_scratch((size_t)(64 + round_up(size, 64)));
    if (!block) {
        call->failed = 1;
        return NULL;
    }
    block->next = call->blocks;
    call->blocks = block;
    return (char *)block + 64;
}

void dts_give_back(Call *call) {
    while (call->blocks) {
        Block *next = call->blocks->next;
        dts_scratch_back(call->blocks);
        call->blocks = next;
    }
}

void dts_take_pairs(Call *call, const Segment *s, int with_sums) {
    int64_t tile = 4 * call->k->lanes, sums = s->groups * tile * 4, digits = round_up(4 * s->plane, 64);
    int64_t each = s->exact ? 16 * s->plane : (with_sums ? sums : 0) + 2 * digits;
    char *at = dts_take(call, each * s->count);
    for (int64_t p = s->first; at && p < s->first + s->count; p++, at += each) {
        Pair *pair = &call->pairs[p];
        if (s->exact) {
            pair->t = memset(at, 0, (size_t)each);
            continue;
        }
        pair->digits.high = (int8_t *)at, pair->digits.low = (int8_t *)at + digits;
        if (with_sums) pair->sums = memset(at + 2 * digits, 0, (size_t)sums);
    }
}

void dts_take_scratch(Call *call) {
    int64_t tile = 4 * call->k->lanes, widest = 0, most = 0;
    for (int64_t i = 0; i < call->segment_count; i++) {
        if (call->segments[i].plane > widest) widest = call->segments[i].plane;
        if (call->segments[i].count > most) most = call->segments[i].count;
    }
    int64_t decoded = CHUNK * 4 * tile, expand = decoded + (call->rows + most) * tile * 4;
    int64_t needs[] = {call->n * 4, 4 * CHUNK * tile, expand, (widest + tile) * 24};
    call->scratch_size = 0;
    for (int i = 0; i < 4; i++)
        if (needs[i] > call->scratch_size) call->scratch_size = round_up(needs[i], 64);
    call->scratch = dts_take(call, call->scratch_size * call->threads);
}

static int64_t codes(const Call *call) {
    int64_t sum = 0;
    for (int64_t i = 0; i < call->segment_count; i++)
        sum += call->segments[i].task->rank * call->segments[i].count * (call->n + call->m);
    return sum;
}

static int64_t plan_shrink(Call *call) {
    int64_t blocks = 0, items = 0;
    enum { BLOCK = 96 }; /* pairs that use a decoded tile before it is decoded again */
    for (int64_t i = 0; i < call->segment_count; i++) blocks += ceil_div(call->segments[i].count, BLOCK);
    int64_t most = 0;
    for (int64_t i = 0; i < call->segment_count; i++) most += call->segments[i].groups * blocks;
    call->work = dts_take(call, 5 * 8 * (most ? most : 1));
    for (int64_t i = 0; call->work && i < call->segment_count; i++) {
        const Segment *s = &call->segments[i];
        /* one task: its ranks are split over the threads; many: a task a thread, every byte read once, in order */
        int64_t parts = blocks >= 4 * call->threads ? 1 : s->direct ? call->threads : 4 * call->threads;
        for (int64_t p = 0; p < s->count; p += BLOCK)
            for (int64_t part = 0; part < least(parts, s->groups); part++) {
                int64_t item[] = {i, part, least(parts, s->groups), s->first + p, least(BLOCK, s->count - p)};
                memcpy(call->work + 5 * items++, item, sizeof item);
            }
    }
    return items;
}

static int64_t size_of_row(const Call *call) { return round_up(call->n, 64); }

void dts_sweep(Call *call) {
    int exact = 0, digits = 0;
    for (int64_t i = 0; i < call->segment_count; i++)
        if (call->segments[i].exact) exact = 1;
        else digits = 1;
    call->threads = dts_useful_threads(call->threads, codes(call));
    call->inputs = NULL, call->input_floats = NULL;
    if (exact) call->input_floats = dts_take(call, call->rows * call->n * 4);
    if (digits) {
        call->inputs = dts_take(call, call->rows * (int64_t)sizeof(Digits));
        int8_t *at = dts_take(call, 2 * size_of_row(call) * call->rows);
        for (int64_t r = 0; !call->failed && r < call->rows; r++, at += 2 * size_of_row(call))
            call->inputs[r].high = at, call->inputs[r].low = at + size_of_row(call);
    }
    for (int64_t i = 0; i < call->segment_count; i++) dts_take_pairs(call, &call->segments[i], 1);
    int64_t items = plan_shrink(call), tile = 4 * call->k->lanes;
    dts_take_scratch(call);
    if (call->failed) return;
    if (call->segment_count) dts_parallel(call->rows > 1 ? call->threads : 1, call->rows, dts_prepare_row, call);
    dts_parallel(call->threads, items, dts_shrink_item, call);
    dts_parallel(call->threads, call->pair_count, dts_scale_item, call);
    dts_parallel(call->threads, ceil_div(call->m, tile), dts_expand_item, call);
}
