/* Vectors of tasks in few bits: their numbers, and those that a call adds. */
#include "rounded.h"

#include <string.h>

#include "dts.h"
#include "scratch.h"

void dts_numbers(const Kernels *k, const Rounded *one, int64_t n, float *out) {
    if (!one->bits) memset(out, 0, (size_t)n * sizeof *out);
    else if (one->bits == FLOATS) memcpy(out, one->codes, (size_t)n * sizeof *out);
    else k->numbers(one->codes, one->scales, (int)one->bits, n, out);
}

int dts_addends(const Kernels *k, const Rounded *given, int64_t have, const int32_t *slots, int64_t count, int64_t m,
                Addends *out) {
    int64_t decoded = 0;
    size_t size = (size_t)have * sizeof *out->rows;
    const float **rows = dts_scratch(size);
    *out = (Addends){.rows = rows, .count = have, .m = m};
    if (!rows) return 0;
    memset(rows, 0, size);
    /* those in float32 as they lie; what is written over below marks the others */
    for (int64_t i = 0; i < count; i++) {
        int64_t slot = slots[i];
        if (slot < 0 || slot >= have || rows[slot] || !given[slot].bits) continue;
        rows[slot] = given[slot].codes;
        decoded += given[slot].bits != FLOATS;
    }
    if (!decoded) return 1;
    float *at = out->numbers = dts_scratch((size_t)(decoded * m) * sizeof *at);
    if (!at) {
        dts_addends_back(out);
        return 0;
    }
    for (int64_t i = 0; i < count; i++) {
        int64_t slot = slots[i];
        if (slot < 0 || slot >= have || !given[slot].bits || given[slot].bits == FLOATS) continue;
        if (rows[slot] != given[slot].codes) continue; /* decoded already */
        dts_numbers(k, &given[slot], m, at);
        rows[slot] = at, at += m;
    }
    return 1;
}

void dts_addends_back(Addends *addends) {
    if (addends->numbers) dts_scratch_back(addends->numbers);
    if (addends->rows) dts_scratch_back(addends->rows);
    addends->rows = NULL, addends->numbers = NULL;
}

int dts_rounded_rows(const RoundedRows *a) {
    const Kernels *k = dts_find(a->variant);
    int64_t n = a->n;
    if (!k) return NO_VARIANT;
    if (a->count < 0 || n < 0 || !holds(a->slots, a->count, 1, a->count, 0) ||
        !holds(a->out, a->out_have, a->count, n, n) || !all_rounded_fit(a->given, a->have, a->slots, a->count, n))
        return NO_FIT;
    for (int64_t i = 0; i < a->count; i++)
        if (a->slots[i] >= 0 && a->slots[i] < a->have) dts_numbers(k, &a->given[a->slots[i]], n, a->out + i * n);
        else memset(a->out + i * n, 0, (size_t)n * sizeof *a->out);
    return DONE;
}
