/* The product of rows in blocks, each of one task; see rowblocks.c. */
#ifndef DTS_ROWBLOCKS_H
#define DTS_ROWBLOCKS_H
#include "kernels.h"

typedef struct { int64_t row; float gamma; } TaskRow;

typedef struct {
    const Task *task;               /* of rank above 0, without levels */
    const TaskRow *rows;
    int64_t count;                  /* at most what dts_block_rows says */
} RowBlock;

typedef struct {
    const Kernels *k;
    const RowBlock *blocks;
    int transposed, type;           /* type: of x, y and out */
    int64_t n, m;
    const char *x, *y;              /* y NULL: zeros; strides in bytes */
    char *out;
    int64_t x_stride, y_stride, out_stride;
    int64_t tile_bytes;             /* filled in */
} RowBlocks;

int64_t dts_block_rows(const Kernels *k, int threads, int64_t rows, int64_t n, int64_t rank);

/* out = y + the delta of every row in a block.  Returns 1 without memory, else 0. */
int dts_row_blocks(RowBlocks *call, int threads, int64_t count);

#endif
