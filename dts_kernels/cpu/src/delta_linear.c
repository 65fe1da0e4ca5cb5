/* y + the delta of every row: which rows meet which task, in row blocks or in sweeps. */
#include <string.h>

#include "dts.h"
#include "rowblocks.h"
#include "sweep.h"

enum {
    BLOCK_FROM = 4,   /* rows a task and a thread, on average, from which row blocks beat passes over all codes */
    SAMPLED_FROM = 8, /* the same with samples in them: of fewer rows their turns would take longer */
};

/* Whether row blocks may add the samples, too: in float32, of digits, at most one a slot, of slots with factors. */
static int in_one(const DeltaLinear *a, const Kernels *k) {
    if (!a->samples || a->transposed || a->turned || a->type != FLOAT32) return 0;
    for (int64_t i = 0; i < a->entries * a->places; i++) {
        int64_t slot = a->slots[i];
        if (slot < 0 || slot >= a->slot_count) continue;
        int64_t first = a->starts[slot], count = a->starts[slot + 1] - first;
        if (count && (count > 1 || !in_digits(k, &a->samples[first]) || slot >= a->task_count || !a->tasks[slot].rank))
            return 0;
    }
    return 1;
}

/* The whole call in row blocks (rowblocks.c) where each row has at most one task of fixed values.  Returns whether it
 * was taken: 1, or 2 with the samples. */
static int in_blocks(Call *call, const DeltaLinear *a) {
    const Task *tasks = a->tasks;
    int64_t rows = a->rows, task_count = a->task_count;
    if (call->exact || rows < BLOCK_FROM) return 0;
    TaskRow *list = dts_take(call, rows * (int64_t)sizeof(TaskRow));
    if (!list) return 1;
    for (int64_t entry = 0; entry < rows / call->each; entry++) {
        TaskRow one = {.slot = -1};
        for (int64_t at = entry * call->places; at < (entry + 1) * call->places; at++) {
            int32_t slot = call->slots[at];
            int factors = slot >= 0 && slot < task_count && tasks[slot].rank;
            if (!factors && !addend(&call->adds, slot)) continue;
            if (one.slot >= 0 || (factors && tasks[slot].levels)) return 0;
            one.slot = slot, one.gamma = call->weights[at];
        }
        for (int64_t i = entry * call->each; i < (entry + 1) * call->each; i++) list[i] = one, list[i].row = i;
    }
    RowBlocks work = {.k = call->k,
                      .transposed = (int)a->transposed,
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
                      .adds = call->adds};
    int done = 0;
    if (in_one(a, call->k)) { /* not so few rows that a sample's turns take longer than its products */
        work.samples = a->samples, work.starts = a->starts, work.slot_count = a->slot_count;
        done = 2 * dts_row_blocks(&work, call->threads, list, rows, SAMPLED_FROM);
        work.samples = NULL;
    }
    if (!done) done = dts_row_blocks(&work, call->threads, list, rows, BLOCK_FROM);
    call->failed = done < 0;
    return done;
}

/* All but the samples, unless row blocks took those, too (sampled). */
static int components(const DeltaLinear *a, const Kernels *k, const Addends *adds, int *sampled) {
    int transposed = (int)a->transposed;
    int64_t rows = a->rows, n = a->n, m = a->m, places = a->places, task_count = a->task_count;
    const Task *tasks = a->tasks;
    const int32_t *slots = a->slots;
    Call call = {.k = k,
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
                 .adds = *adds,
                 .places = places,
                 .each = a->entries ? rows / a->entries : 1};
    if (!known_type(call.type)) return NO_FIT;
    int64_t size = size_of(call.type);
    if (!holds(a->x, a->x_have, rows, n, a->x_stride / size) ||
        (a->y && !holds(a->y, a->y_have, rows, m, a->y_stride / size)) ||
        !holds(a->out, a->out_have, rows, m, a->out_stride / size) ||
        (a->adds && !holds(a->adds, a->adds_have, a->add_count, m, m)) ||
        !routes(slots, a->slots_have, a->weights, a->weights_have, a->entries, places, rows) ||
        !tasks_fit(tasks, task_count, slots, a->entries * places, transposed ? n : m, transposed ? m : n))
        return NO_FIT;
    if (a->samples && (a->x_stride != n * size || a->out_stride != m * size ||
                       !samples_fit(a->samples, a->sample_count, a->starts, a->slot_count, slots, a->entries * places,
                                    a->turned ? n : m, a->turned ? m : n)))
        return NO_FIT;
    if (!rows || !m) return DONE;
    call.threads = a->threads > 0 ? (int)a->threads : 1;
    int taken = a->entries ? in_blocks(&call, a) : 0;
    *sampled = taken == 2;
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
                call.used[i / places] |= (slot >= 0 && slot < task_count && tasks[slot].rank) || addend(adds, slot);
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

int dts_delta_linear(const DeltaLinear *a) {
    const Kernels *k = dts_find(a->variant);
    if (!k) return NO_VARIANT;
    Addends adds = {.stack = a->adds, .count = a->adds ? a->add_count : 0, .m = a->m};
    if (a->rounded) {
        if (!holds(a->slots, a->slots_have, a->entries, a->places, a->places) ||
            !all_rounded_fit(a->rounded, a->add_count, a->slots, a->entries * a->places, a->m))
            return NO_FIT;
        if (!dts_addends(k, a->rounded, a->add_count, a->slots, a->entries * a->places, a->m, &adds)) return NO_MEMORY;
    }
    int sampled = 0, code = components(a, k, &adds, &sampled);
    dts_addends_back(&adds);
    if (code != DONE || !a->samples || sampled) return code;
    AddSamples rest = {.variant = a->variant,
                       .threads = a->threads,
                       .exact = a->exact,
                       .transposed = a->turned,
                       .x = a->x,
                       .x_have = a->x_have,
                       .type = a->type,
                       .rows = a->rows,
                       .m = a->turned ? a->n : a->m,
                       .n = a->turned ? a->m : a->n,
                       .y = a->out,
                       .y_have = a->out_have,
                       .out = a->out,
                       .out_have = a->out_have,
                       .samples = a->samples,
                       .sample_count = a->sample_count,
                       .starts = a->starts,
                       .slot_count = a->slot_count,
                       .slots = a->slots,
                       .slots_have = a->slots_have,
                       .weights = a->weights,
                       .weights_have = a->weights_have,
                       .entries = a->entries,
                       .places = a->places};
    return dts_add_samples(&rest);
}
