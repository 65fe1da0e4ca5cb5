/* The dense delta: its rows are products of t = sigma * gamma * u with V, V's rows being the outputs. */
#include <stdlib.h>

#include "dts.h"
#include "parallel.h"
#include "rowblocks.h"
#include "sweep.h"

/* Rows of the dense matrix are products of t = sigma * gamma * u with V. */
static void rows_item(void *context, int64_t item, int worker) {
    Call *call = context;
    Pair *pair = &call->pairs[item];
    const Segment *s = &call->segments[pair->task];
    const uint8_t *row = s->v + (call->first_row + pair->row) * s->v_stride;
    float *t = (float *)(call->scratch + worker * call->scratch_size);
    decode_row(row, s->task->rank, s->v_values, s->task->sigma, pair->gamma, t);
    if (!s->exact) {
        call->k->quantise(t, s->task->rank, 4 * s->width, digit_limit(s->task->rank), &pair->digits);
        return;
    }
    for (int64_t r = 0; r < s->task->rank; r++) pair->t[r % 4 * s->plane + r / 4] = t[r];
}

/* One task of fixed values: all rows of its u in row blocks, as an embedding's.  The same numbers, with fewer passes over
 * them. */
static int in_blocks(const Call *call, int threads, const Task *task, float gamma, int64_t m) {
    TaskRow *list = malloc((size_t)m * sizeof *list);
    if (!list) return NO_MEMORY;
    for (int64_t i = 0; i < m; i++) list[i] = (TaskRow){.row = i, .id = i, .slot = 0, .gamma = gamma};
    RowBlocks work = {.k = call->k,
                      .type = call->type,
                      .m = call->m,
                      .y = call->y,
                      .out = call->out,
                      .y_stride = call->y_stride,
                      .out_stride = call->out_stride,
                      .tasks = task,
                      .task_count = 1};
    int done = dts_row_blocks(&work, threads, list, m, 0);
    free(list);
    return done < 0 ? NO_MEMORY : DONE;
}

int dts_reconstruct(const char *variant, int threads, int exact, const Task *tasks, int64_t task_count,
                    const float *gamma, int64_t gamma_have, const void *base, int64_t base_stride, void *out,
                    int64_t have, int64_t out_stride, int type, int64_t m, int64_t n) {
    Call call = {.k = dts_find(variant),
                 .exact = exact,
                 .type = type,
                 .n = 0,
                 .m = n,
                 .y = base,
                 .out = out,
                 .y_stride = base_stride,
                 .out_stride = out_stride};
    if (!call.k) return NO_VARIANT;
    if (!known_type(type)) return NO_FIT;
    int64_t size = size_of(type);
    if (!holds(out, have, m, n, out_stride / size) || (base && !holds(base, have, m, n, base_stride / size)) ||
        !holds(gamma, gamma_have, 1, gamma_have, 0) || !tasks_fit(tasks, task_count, NULL, 0, m, n))
        return NO_FIT;
    if (!m || !n) return DONE;
    int64_t used = 0, one = 0, tile = 4 * call.k->lanes;
    task_count = least(task_count, gamma_have);
    for (int64_t i = 0; i < task_count; i++)
        if (gamma[i] != 0 && !task_fits(&tasks[i], m, n)) return NO_FIT;
    for (int64_t i = 0; i < task_count; i++)
        if (tasks[i].rank && gamma[i] != 0) used++, one = i;
    if (used == 1 && !exact && !tasks[one].levels)
        return in_blocks(&call, threads > 0 ? threads : 1, &tasks[one], gamma[one], m);
    int64_t step = used ? MOST_PAIRS / used > 8 ? MOST_PAIRS / used : 8 : MOST_PAIRS;
    for (int64_t first = 0; first < m && !call.failed; first += step) {
        call.threads = threads > 0 ? threads : 1;
        call.first_row = first;
        call.rows = least(step, m - first);
        call.segments = dts_take(&call, used * (int64_t)sizeof(Segment));
        call.pairs = dts_take(&call, used * call.rows * (int64_t)sizeof(Pair));
        call.segment_count = call.pair_count = 0;
        for (int64_t i = 0; !call.failed && i < task_count; i++) {
            if (!tasks[i].rank || gamma[i] == 0) continue;
            Segment *s = &call.segments[call.segment_count];
            *s = dts_segment(&call, &tasks[i], 1, call.pair_count, call.rows); /* V's rows are the outputs */
            s->direct = 0;
            for (int64_t r = 0; r < call.rows; r++)
                call.pairs[call.pair_count++] =
                    (Pair){.row = (int32_t)r, .task = (int32_t)call.segment_count, .gamma = gamma[i]};
            dts_take_pairs(&call, s, 0);
            call.segment_count++;
        }
        dts_take_scratch(&call);
        if (!call.failed) {
            dts_parallel(call.threads, call.pair_count, rows_item, &call);
            dts_parallel(call.threads, ceil_div(n, tile), dts_expand_item, &call);
        }
        dts_give_back(&call);
    }
    return call.failed;
}
