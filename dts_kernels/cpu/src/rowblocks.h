/* The product of rows in blocks, each of one task; see rowblocks.c. */
#ifndef DTS_ROWBLOCKS_H
#define DTS_ROWBLOCKS_H
#include "kernels.h"
#include "rounded.h"
#include "samples.h"
#include "task.h"

typedef struct {
    int64_t row;
    int64_t id;   /* embeddings: the row of u */
    int32_t slot; /* -1: none */
    float gamma;
} TaskRow;

typedef struct {
    const Kernels *k;
    int transposed, type; /* type: of x, y and out */
    int64_t n, m;
    const char *x, *y; /* x NULL: rows of u instead of x V (embeddings); y NULL: zeros; strides in bytes */
    char *out;
    int64_t x_stride, y_stride, out_stride;
    const Task *tasks; /* without levels where a row uses them */
    int64_t task_count;
    Addends adds;          /* gamma times the slot's is added */
    const Sample *samples; /* NULL, or those of a bank whose slots have at most one each, of digits (in_digits), */
    const int64_t *starts; /* in float32: their products with x are added last */
    int64_t slot_count;
} RowBlocks;

/* out = y + the delta of every row, unless tasks have fewer than `from` rows on average (a task and a thread).
 * Returns 1 if done, 0 if not, -1 without memory. */
int dts_row_blocks(const RowBlocks *call, int threads, const TaskRow *list, int64_t rows, int64_t from);

#endif
