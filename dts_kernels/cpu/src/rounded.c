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
    size_t pointers = (size_t)round_up(have * (int64_t)sizeof *out->rows, 64);
    char *memory = dts_scratch(pointers + (size_t)(least(count, have) * m) * sizeof(float));
    if (!memory) return 0;
    float *at = (float *)(memory + pointers);
    *out = (Addends){.rows = (const float **)memory, .count = have, .m = m};
    memset(memory, 0, pointers);
    for (int64_t i = 0; i < count; i++) {
        int64_t slot = slots[i];
        if (slot < 0 || slot >= have || out->rows[slot]) continue;
        dts_numbers(k, &given[slot], m, at);
        out->rows[slot] = at, at += m;
    }
    return 1;
}

void dts_addends_back(Addends *addends) {
    if (addends->rows) dts_scratch_back(addends->rows);
    addends->rows = NULL;
}

int dts_rounded_rows(const char *variant, const Rounded *given, int64_t have, const int32_t *slots, int64_t count,
                     int64_t n, float *out, int64_t out_have) {
    const Kernels *k = dts_find(variant);
    if (!k) return NO_VARIANT;
    if (count < 0 || n < 0 || !holds(slots, count, 1, count, 0) || !holds(out, out_have, count, n, n) ||
        !all_rounded_fit(given, have, slots, count, n))
        return NO_FIT;
    for (int64_t i = 0; i < count; i++)
        if (slots[i] >= 0 && slots[i] < have) dts_numbers(k, &given[slots[i]], n, out + i * n);
        else memset(out + i * n, 0, (size_t)n * sizeof *out);
    return DONE;
}
