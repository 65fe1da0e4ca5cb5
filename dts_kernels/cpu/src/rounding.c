/* Components rounded one after the other: what one sweep of the codec does between two products (dts.codec.alternations). */
#include "dts.h"
#include "kernels.h"

int dts_round_components(const char *variant, float *factor, int64_t factor_have, int64_t factor_stride, float *misfit,
                         int64_t misfit_have, int64_t misfit_stride, const float *weights, int64_t weights_have,
                         int64_t weights_stride, const float *step, int64_t step_have, int64_t count, int64_t columns) {
    const Kernels *k = dts_find(variant);
    if (!k) return NO_VARIANT;
    if (!holds(factor, factor_have, count, columns, factor_stride) ||
        !holds(misfit, misfit_have, count, columns, misfit_stride) ||
        !holds(weights, weights_have, count, count, weights_stride) || !holds(step, step_have, 1, count, 0))
        return NO_FIT;
    k->round_components(factor, factor_stride, misfit, misfit_stride, weights, weights_stride, step, count, columns);
    return DONE;
}
