/* The inner loop of dts_round_components; included by variant.c.
 *
 * Columns are independent, and each has the same operations in one order in every variant, none of them fused: the same
 * bits whatever the instruction set.
 */

enum { STRIP = 64, TOGETHER = 8 }; /* columns at a time; components whose changes later ones take in one pass */

INLINE float nearest(float x) { /* of +1, +4, -1, -4; 2.5 is halfway */
    uint32_t bits = to_bits(x), size = to_bits((bits & 0x7fffffff) > to_bits(2.5f) ? 4.0f : 1.0f);
    return from_bits(size | (bits & 0x80000000u));
}

INLINE void round_strip(float *factor, int64_t factor_stride, float *misfit, int64_t misfit_stride,
                        const float *weights, int64_t weights_stride, const float *step, int64_t count, int columns) {
    float change[TOGETHER][STRIP];
    for (int64_t first = 0; first < count; first += TOGETHER) {
        int some = count - first < TOGETHER ? (int)(count - first) : TOGETHER;
        for (int k = 0; k < some; k++) {
            float *own = factor + (first + k) * factor_stride, *left = misfit + (first + k) * misfit_stride;
            const float *weight = weights + (first + k) * weights_stride + first;
            for (int before = 0; before < k; before++) {
                ELEMENTWISE
                for (int c = 0; c < columns; c++) left[c] += weight[before] * change[before][c];
            }
            float by = step[first + k];
            ELEMENTWISE
            for (int c = 0; c < columns; c++) {
                float now = nearest(own[c] + left[c] * by);
                change[k][c] = own[c] - now;
                own[c] = now;
            }
        }
        for (int64_t later = first + TOGETHER; later < count; later++) { /* `some` is TOGETHER where there are any */
            const float *weight = weights + later * weights_stride + first;
            float *left = misfit + later * misfit_stride;
            ELEMENTWISE
            for (int c = 0; c < columns; c++) {
                float sum = left[c];
                for (int k = 0; k < TOGETHER; k++) sum += weight[k] * change[k][c];
                left[c] = sum;
            }
        }
    }
}

static void round_components(float *factor, int64_t factor_stride, float *misfit, int64_t misfit_stride,
                             const float *weights, int64_t weights_stride, const float *step, int64_t count,
                             int64_t columns) {
    int64_t at = 0;
    for (; at + STRIP <= columns; at += STRIP)
        round_strip(factor + at, factor_stride, misfit + at, misfit_stride, weights, weights_stride, step, count,
                    STRIP);
    if (at < columns)
        round_strip(factor + at, factor_stride, misfit + at, misfit_stride, weights, weights_stride, step, count,
                    (int)(columns - at));
}
