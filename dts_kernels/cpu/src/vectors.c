/* What tasks add to vectors: the weight and the bias of a norm. */
#include "dts.h"
#include "scratch.h"

/* The numbers of a slot; decoded: memory for n of them, where they are in few bits. */
static const float *vector_of(const Kernels *k, const Vector *one, int64_t slot, int64_t n, float *decoded) {
    if (!one->rounded) return one->stack + slot * n;
    if (one->rounded[slot].bits == FLOATS) return one->rounded[slot].codes;
    dts_numbers(k, &one->rounded[slot], n, decoded);
    return decoded;
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
    float *decoded = rounded ? dts_scratch((size_t)n * sizeof *decoded) : NULL;
    if (rounded && (!k || !decoded)) {
        dts_scratch_back(decoded);
        return k ? NO_MEMORY : NO_VARIANT;
    }
    for (int64_t v = 0; v < a->count; v++)
        for (int64_t e = 0; e < entries; e++) {
            const Vector *one = &a->of[v];
            float *to = one->out + e * n;
            int64_t used = 0;
            for (int64_t at = e * places; at < (e + 1) * places; at++) {
                if (a->slots[at] < 0 || a->slots[at] >= one->tasks) continue;
                const float *add = vector_of(k, one, a->slots[at], n, decoded);
                float gamma = a->weights[at];
                if (!used++)
                    for (int64_t c = 0; c < n; c++) to[c] = gamma * add[c];
                else
                    for (int64_t c = 0; c < n; c++) to[c] += gamma * add[c];
            }
            for (int64_t c = 0; c < n; c++) to[c] = used ? one->base[c] + to[c] : one->base[c];
        }
    dts_scratch_back(decoded);
    return DONE;
}
