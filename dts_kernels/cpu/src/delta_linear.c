/* y + the delta of every row: which rows meet which task, in row blocks or in sweeps. */
#include <string.h>

#include "dts.h"
#include "rowblocks.h"
#include "sweep.h"

enum { BLOCK_FROM = 4 }; /* rows a task and a thread, on average, from which row blocks beat passes over all codes */

/* The whole call in row blocks (rowblocks.c) where each row has at most one task of fixed values.  Returns whether it
 * was taken. */
static int in_blocks(Call *call, int transposed, int64_t rows, const Task *tasks, int64_t task_count) {
    if (call->exact || rows < BLOCK_FROM) return 0;
    TaskRow *list = dts_take(call, rows * (int64_t)sizeof(TaskRow));
    if (!list) return 1;
    for (int64_t entry = 0; entry < rows / call->each; entry++) {
        TaskRow one = {.slot = -1};
        for (int64_t at = entry * call->places; at < (entry + 1) * call->places; at++) {
            int32_t slot = call->slots[at];
            int factors = slot >= 0 && slot < task_count && tasks[slot].rank;
            if (!factors && !(call->adds && slot >= 0 && slot < call->add_count)) continue;
            if (one.slot >= 0 || (factors && tasks[slot].levels)) return 0;
            one.slot = slot, one.gamma = call->weights[at];
        }
        for (int64_t i = entry * call->each; i < (entry + 1) * call->each; i++) list[i] = one, list[i].row = i;
    }
    RowBlocks work = {.k = call->k,
                      .transposed = transposed,
                      .type = call->type,
                      .n = call->n,
                      .m = call->m,
                      .x = call->x,
                      .y = call->y,
                      .out = call->out,
                      .x_stride = call->x_stride,
                      .y_stride = call->y_stride,
                      .out_stride = call->out_stride,
                      .tasks = tasks,
                      .task_count = task_count,
                      .adds = call->adds,
                      .add_count = call->add_count};
    int done = dts_row_blocks(&work, call->threads, list, rows, BLOCK_FROM);
    call->failed = done < 0;
    return done;
}

int dts_delta_linear(const DeltaLinear *a) {
    int transposed = (int)a->transposed;
    int64_t rows = a->rows, n = a->n, m = a->m, places = a->places, task_count = a->task_count;
    const Task *tasks = a->tasks;
    const int32_t *slots = a->slots;
    Call call = {.k = dts_find(a->variant),
                 .exact = (int)a->exact,
                 .type = (int)a->type,
                 .n = n,
                 .m = m,
                 .x = a->x,
                 .y = a->y,
                 .out = a->out,
                 .x_stride = a->x_stride,
                 .y_stride = a->y_stride,
                 .out_stride = a->out_stride,
                 .slots = slots,
                 .weights = a->weights,
                 .adds = a->adds,
                 .add_count = a->add_count,
                 .places = places,
                 .each = a->entries ? rows / a->entries : 1};
    if (!call.k) return NO_VARIANT;
    if (!known_type(call.type)) return NO_FIT;
    int64_t size = size_of(call.type);
    if (!holds(a->x, a->x_have, rows, n, a->x_stride / size) ||
        (a->y && !holds(a->y, a->y_have, rows, m, a->y_stride / size)) ||
        !holds(a->out, a->out_have, rows, m, a->out_stride / size) ||
        (a->adds && !holds(a->adds, a->adds_have, a->add_count, m, m)) ||
        !routes(slots, a->slots_have, a->weights, a->weights_have, a->entries, places, rows) ||
        !tasks_fit(tasks, task_count, slots, a->entries * places, transposed ? n : m, transposed ? m : n))
        return NO_FIT;
    if (!rows || !m) return DONE;
    call.threads = a->threads > 0 ? (int)a->threads : 1;
    int taken = a->entries && in_blocks(&call, transposed, rows, tasks, task_count);
    dts_give_back(&call);
    if (taken) return call.failed;
    int64_t step = places && MOST_PAIRS / places > 0 ? MOST_PAIRS / places : places ? 1 : MOST_PAIRS, each = call.each;
    for (int64_t first = 0; first < rows && !call.failed; first += step) {
        call.threads = a->threads > 0 ? (int)a->threads : 1;
        call.first_row = first;
        call.rows = least(step, rows - first);
        int64_t *counts = dts_take(&call, (task_count + 1) * 8);
        call.pairs = dts_take(&call, call.rows * places * (int64_t)sizeof(Pair));
        call.segments = dts_take(&call, least(task_count, call.rows * places) * (int64_t)sizeof(Segment));
        call.used = dts_take(&call, call.rows);
        if (!call.failed) {
            memset(call.used, 0, (size_t)call.rows);
            memset(counts, 0, (size_t)(task_count + 1) * 8);
            memset(call.pairs, 0, (size_t)(call.rows * places) * sizeof(Pair));
            for (int64_t i = 0; i < call.rows * places; i++) {
                int64_t slot = slots[(first + i / places) / each * places + i % places];
                if (slot >= 0 && slot < task_count) counts[slot]++;
                call.used[i / places] |=
                    slot >= 0 && ((slot < task_count && tasks[slot].rank) || (a->adds && slot < a->add_count));
            }
            call.pair_count = call.segment_count = 0;
            for (int64_t slot = 0; slot < task_count; slot++) {
                int64_t count = tasks[slot].rank ? counts[slot] : 0;
                if (count)
                    call.segments[call.segment_count++] =
                        dts_segment(&call, &tasks[slot], transposed, call.pair_count, count);
                counts[slot] = count ? call.pair_count : -1;
                call.pair_count += count;
            }
            for (int64_t i = 0; i < call.rows * places; i++) {
                int64_t at = (first + i / places) / each * places + i % places, slot = slots[at];
                if (slot < 0 || slot >= task_count || counts[slot] < 0) continue;
                Pair *pair = &call.pairs[counts[slot]++];
                pair->row = (int32_t)(i / places);
                pair->gamma = a->weights[at];
            }
            dts_sweep(&call);
        }
        dts_give_back(&call);
    }
    return call.failed;
}
