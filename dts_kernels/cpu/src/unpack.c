/* Codes as numbers, for the library's products. */
#include <string.h>

#include "dts.h"
#include "kernels.h"
#include "parallel.h"

enum { ITEM = 64 }; /* rows of an item of work */

typedef struct {
    const uint8_t *packed;
    char *out;
    int64_t stride, rows, bytes, out_stride;
    int type;
    uint32_t table[256][4]; /* four numbers a byte, 16 or 8 bytes of them */
} Unpack;

static void unpack_item(void *context, int64_t item, int worker) {
    Unpack *u = context;
    (void)worker;
    for (int64_t row = item * ITEM; row < least(u->rows, (item + 1) * ITEM); row++) {
        const uint8_t *from = u->packed + row * u->stride;
        char *to = u->out + row * u->out_stride;
        if (u->type == FLOAT32)
            for (int64_t j = 0; j < u->bytes; j++) memcpy(to + 16 * j, u->table[from[j]], 16);
        else
            for (int64_t j = 0; j < u->bytes; j++) memcpy(to + 8 * j, u->table[from[j]], 8);
    }
}

int dts_unpack(const char *variant, int threads, const uint8_t *packed, int64_t stride, int64_t rows, int64_t bytes,
               const float *levels, void *out, int64_t out_have, int64_t out_stride, int type) {
    const Kernels *k = dts_find(variant);
    if (!k) return NO_VARIANT;
    if (!known_type(type) || rows < 0 || bytes < 0 || stride < 0 || (!packed && rows && bytes) ||
        !holds(out, out_have, rows, 4 * bytes, out_stride / size_of(type)))
        return NO_FIT;
    Unpack unpack = {.packed = packed,
                     .out = out,
                     .stride = stride,
                     .rows = rows,
                     .bytes = bytes,
                     .out_stride = out_stride,
                     .type = type};
    const float *values = levels ? levels : code_values;
    for (int b = 0; b < 256; b++) {
        float four[4];
        for (int i = 0; i < 4; i++) four[i] = values[b >> 2 * i & 3];
        k->narrow(four, NULL, unpack.table[b], type, 4);
    }
    dts_parallel(threads, ceil_div(rows, ITEM), unpack_item, &unpack);
    return DONE;
}
