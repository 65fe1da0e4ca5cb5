/* Rows of a matrix of sampled elements. */
#include <stdlib.h>
#include <string.h>

#include "dts.h"
#include "kernels.h"
#include "parallel.h"

enum { IDS = 16 }; /* of an item of work */

typedef struct {
    const Kernels *k;
    const int64_t *ids;
    int64_t count, n, entries, places, slot_count;
    const char *y;
    char *out;
    int type;
    const Sample *samples;
    const int64_t *starts;
    const int32_t *slots;
    const float *weights;
    float *rows; /* [workers, n] */
} Rows;

/* row += factor * row `id` of D */
static void add_row(const Kernels *k, const Sample *s, int64_t id, float factor, int64_t n, float *row) {
    int64_t last = sample_elements(s, n), unit = SEGMENT * s->kept, step = MOST_GROUPS / unit * unit;
    for (int64_t t = 0; t < last; t += step) k->samples_row(s, id, t, least(t + step, last), factor, n, row);
}

static void rows_item(void *context, int64_t item, int worker) {
    const Rows *call = context;
    float *row = call->rows + worker * call->n;
    int64_t each = call->count / call->entries;
    for (int64_t i = item * IDS; i < least((item + 1) * IDS, call->count); i++) {
        memset(row, 0, (size_t)call->n * 4);
        for (int64_t at = i / each * call->places; at < (i / each + 1) * call->places && call->ids[i] >= 0; at++) {
            int64_t slot = call->slots[at];
            if (slot < 0 || slot >= call->slot_count) continue;
            for (int64_t s = call->starts[slot]; s < call->starts[slot + 1]; s++)
                add_row(call->k, &call->samples[s], call->ids[i], call->weights[at] * call->samples[s].scale, call->n,
                        row);
        }
        int64_t at = i * call->n * size_of(call->type);
        call->k->narrow(row, call->y + at, call->out + at, call->type, call->n);
    }
}

int dts_add_sampled_rows(const AddSampledRows *a) {
    int64_t count = a->count, n = a->n;
    Rows call = {.k = dts_find(a->variant),
                 .ids = a->ids,
                 .count = count,
                 .n = n,
                 .entries = a->entries,
                 .places = a->places,
                 .slot_count = a->slot_count,
                 .y = a->y,
                 .out = a->out,
                 .type = (int)a->type,
                 .samples = a->samples,
                 .starts = a->starts,
                 .slots = a->slots,
                 .weights = a->weights};
    if (!call.k) return NO_VARIANT;
    if (!known_type(call.type) || !holds(a->ids, count, count, 1, 1) || !holds(a->y, a->y_have, count, n, n) ||
        !holds(a->out, a->out_have, count, n, n) ||
        !routes(a->slots, a->slots_have, a->weights, a->weights_have, a->entries, a->places, count) ||
        !samples_fit(a->samples, a->sample_count, a->starts, a->slot_count, a->slots, a->entries * a->places, a->m, n))
        return NO_FIT;
    if (!count || !n || !a->entries) return DONE;
    for (int64_t i = 0; i < count; i++)
        if (a->ids[i] >= a->m) return NO_ROW;
    int threads = dts_useful_threads(a->threads > 0 ? (int)a->threads : 1, 2 * count * n);
    call.rows = malloc((size_t)(threads * n) * sizeof *call.rows);
    if (!call.rows) return NO_MEMORY;
    dts_parallel(threads, ceil_div(count, IDS), rows_item, &call);
    free(call.rows);
    return DONE;
}
