/* What a bank's task looks like in memory. */
#ifndef DTS_TASK_H
#define DTS_TASK_H
#include "codes.h"
#include "sizes.h"

typedef struct {
    const uint8_t *u, *v;       /* codes of [m, rank] and [n, rank], four ranks a byte, any alignment */
    const float *sigma;         /* [rank] */
    const float *levels;        /* [2, 4]: values of codes 0..3 in u and in v; NULL: +1, +4, -1, -4 */
    int64_t u_stride, v_stride; /* bytes from row to row */
    int64_t rank;
    const int32_t *lookup;  /* embeddings: row of the matrix -> row of u or -1; NULL: the same */
    int64_t u_rows, v_rows; /* rows there are, and bytes of a row */
    int64_t u_bytes, v_bytes;
    int64_t sigma_count, lookup_count;
} Task;

/* Whether all of a task that is read is there, for a product with [m, n]; m < 0: any. */
static inline int task_fits(const Task *task, int64_t m, int64_t n) {
    int64_t width = bytes_of(task->rank);
    return !task->rank || (task->rank > 0 && task->u_rows >= 0 && (m < 0 || task->u_rows == m) && task->v_rows == n &&
                           width <= task->u_bytes && width <= task->v_bytes &&
                           holds(task->sigma, task->sigma_count, 1, task->rank, 0) && (task->u || !task->u_rows) &&
                           (task->v || !n) && task->u_stride >= 0 && task->v_stride >= 0);
}

/* Whether the tasks of some slots are of [m, n] (m < 0: any rows) and all there. */
static inline int tasks_fit(const Task *tasks, int64_t task_count, const int32_t *slots, int64_t count, int64_t m,
                            int64_t n) {
    if (task_count < 0 || (task_count && !tasks)) return 0;
    for (int64_t i = 0; i < count; i++)
        if (slots[i] >= 0 && slots[i] < task_count && !task_fits(&tasks[slots[i]], m, n)) return 0;
    return 1;
}

#endif
