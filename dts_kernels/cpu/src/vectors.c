/* What tasks add to vectors: the weight and the bias of a norm. */
#include "dts.h"

/* out [entries, n] = base + each entry's sum. */
static void add_vectors(const AddVectors *a, const Vector *one, const Addends *adds) {
    int64_t places = a->places, n = a->n;
    for (int64_t e = 0; e < a->entries; e++) {
        float *to = one->out + e * n;
        int64_t used = 0;
        for (int64_t at = e * places; at < (e + 1) * places; at++) {
            const float *add = addend(adds, a->slots[at]);
            float gamma = a->weights[at];
            if (!add) continue;
            if (!used++)
                for (int64_t c = 0; c < n; c++) to[c] = gamma * add[c];
            else
                for (int64_t c = 0; c < n; c++) to[c] += gamma * add[c];
        }
        for (int64_t c = 0; c < n; c++) to[c] = used ? one->base[c] + to[c] : one->base[c];
    }
}

int dts_add_vectors(const AddVectors *a) {
    int64_t entries = a->entries, places = a->places, n = a->n, pairs = entries * places;
    int rounded = 0;
    if (a->count < 0 || a->count > MOST_VECTORS || entries < 0 || n < 0 ||
        !holds(a->slots, a->slots_have, entries, places, places) ||
        !holds(a->weights, a->weights_have, entries, places, places))
        return NO_FIT;
    for (int64_t v = 0; v < a->count; v++) {
        const Vector *one = &a->of[v];
        if (!holds(one->base, one->base_have, 1, n, 0) || !holds(one->out, one->out_have, entries, n, n) ||
            !(one->rounded ? all_rounded_fit(one->rounded, one->tasks, a->slots, pairs, n)
                           : holds(one->stack, one->stack_have, one->tasks, n, n)))
            return NO_FIT;
        rounded |= one->rounded != NULL;
    }
    const Kernels *k = rounded ? dts_find(a->variant) : NULL;
    if (rounded && !k) return NO_VARIANT;
    for (int64_t v = 0; v < a->count; v++) {
        const Vector *one = &a->of[v];
        Addends adds = {.stack = one->stack, .count = one->tasks, .m = n};
        if (one->rounded && !dts_addends(k, one->rounded, one->tasks, a->slots, pairs, n, &adds)) return NO_MEMORY;
        add_vectors(a, one, &adds);
        dts_addends_back(&adds);
    }
    return DONE;
}
