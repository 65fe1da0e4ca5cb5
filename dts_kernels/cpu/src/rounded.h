/* Vectors of tasks in the few bits that they have on disk. */
#ifndef DTS_ROUNDED_H
#define DTS_ROUNDED_H
#include <stddef.h>

#include "kernels.h"

enum { FLOATS = 32 };

typedef struct {
    const void *codes;      /* `bits` (3, 4, 8) each, two's complement, from the lowest bit of the first byte on */
    const uint16_t *scales; /* bfloat16: that of SHARED numbers each */
    int64_t bits, count;    /* FLOATS: float32 in place of codes;  0: `count` zeros */
} Rounded;

/* What calls add to rows: a vector a slot, of m numbers; addend() gives NULL where a slot has none. */
typedef struct {
    const float *stack; /* [count, m], or where that is NULL */
    const float **rows; /* [count], of the slots that are used */
    float *numbers;     /* what of them is in few bits, decoded */
    int64_t count, m;
} Addends;

static inline const float *addend(const Addends *a, int64_t slot) {
    if (slot < 0 || slot >= a->count) return NULL;
    return a->rows ? a->rows[slot] : a->stack ? a->stack + slot * a->m : NULL;
}

/* Whether a vector of n numbers is all there. */
static inline int rounded_fits(const Rounded *one, int64_t n) {
    if (!one->bits) return 1;
    if (one->count != n || (n && !one->codes)) return 0;
    return one->bits == FLOATS || ((one->bits == 3 || one->bits == 4 || one->bits == 8) && (!n || one->scales));
}

/* Whether those of some slots are. */
static inline int all_rounded_fit(const Rounded *given, int64_t have, const int32_t *slots, int64_t count, int64_t n) {
    if (have < 0 || (have && !given)) return 0;
    for (int64_t i = 0; i < count; i++)
        if (slots[i] >= 0 && slots[i] < have && !rounded_fits(&given[slots[i]], n)) return 0;
    return 1;
}

/* Its numbers: out [n]. */
void dts_numbers(const Kernels *k, const Rounded *one, int64_t n, float *out);

/* Addends whose rows are those of the slots, each decoded once, in memory that dts_addends_back takes; 0 without any. */
int dts_addends(const Kernels *k, const Rounded *given, int64_t have, const int32_t *slots, int64_t count, int64_t m,
                Addends *out);
void dts_addends_back(Addends *addends);

#endif
