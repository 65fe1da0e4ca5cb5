/* y + rows of the dense delta: each a product of t = sigma * gamma * a row of u with V, in row blocks. */
#include <stdlib.h>

#include "dts.h"
#include "rowblocks.h"

int dts_embedding(const Embedding *a) {
    const Kernels *k = dts_find(a->variant);
    int64_t rows = a->rows, n = a->n, id_count = a->id_count, entries = a->entries, task_count = a->task_count;
    const int64_t *ids = a->ids;
    const Task *tasks = a->tasks;
    const int32_t *slots = a->slots;
    if (!k) return NO_VARIANT;
    if (!known_type((int)a->type) || !holds(a->out, a->have, rows, n, n) || !holds(ids, rows, rows, 1, 1) ||
        !routes(slots, entries, a->weights, entries, entries, 1, rows) ||
        !tasks_fit(tasks, task_count, slots, entries, -1, n))
        return NO_FIT;
    for (int64_t i = 0; i < entries; i++)
        if (slots[i] >= 0 && slots[i] < task_count && tasks[slots[i]].rank &&
            (tasks[slots[i]].levels ||
             (tasks[slots[i]].lookup ? tasks[slots[i]].lookup_count < id_count : tasks[slots[i]].u_rows < id_count)))
            return NO_FIT;
    if (!rows || !n) return DONE;
    TaskRow *list = malloc((size_t)rows * sizeof *list);
    if (!list) return NO_MEMORY;
    int64_t each = rows / entries, stride = n * size_of((int)a->type);
    for (int64_t i = 0; i < rows; i++) {
        int32_t slot = slots[i / each];
        int some = ids[i] >= 0 && slot >= 0 && slot < task_count && tasks[slot].rank;
        int64_t id = some && ids[i] < id_count && tasks[slot].lookup ? tasks[slot].lookup[ids[i]] : ids[i];
        list[i] = (TaskRow){.row = i, .id = id, .slot = some && id >= 0 ? slot : -1, .gamma = a->weights[i / each]};
        if (ids[i] >= id_count || (list[i].slot >= 0 && id >= tasks[slot].u_rows)) {
            free(list);
            return ids[i] >= id_count ? NO_ROW : NO_FIT;
        }
    }
    RowBlocks work = {.k = k,
                      .type = (int)a->type,
                      .m = n,
                      .y = a->y,
                      .out = a->out,
                      .y_stride = stride,
                      .out_stride = stride,
                      .tasks = tasks,
                      .task_count = task_count};
    int done = dts_row_blocks(&work, (int)a->threads, list, rows, 0);
    free(list);
    return done < 0 ? NO_MEMORY : DONE;
}
