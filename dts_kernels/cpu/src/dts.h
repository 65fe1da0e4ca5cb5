/* The library's calls.  Arguments come in one record: ctypes takes as long for 28 of them as C for a small product.
 *
 * All return one of sizes.h: NO_FIT, having written nothing, where memory is too small or a task of another size.  A
 * count behind a pointer says how many numbers are there; rows of x, y and out are strides in bytes apart.  native.py
 * and native_samples.py pack the same records.
 */
#ifndef DTS_H
#define DTS_H
#include "rounded.h"
#include "samples.h"
#include "task.h"

/* The i-th variant that this machine can run, fastest first, or NULL. */
const char *dts_variant(int i);

/* out = y + the delta of every row.
 *
 * x [rows, n], y and out [rows, m] (y NULL: zeros; y may be out), of one dtype of sizes.h.  Row i uses entry
 * i / (rows / entries) of slots and weights [entries, places]; a slot outside the tasks, or a task of rank 0, adds
 * nothing.  adds [add_count, m] or NULL: gamma times its row of the slot is added too; or rounded [add_count], a vector
 * of m in few bits a slot, where adds is NULL.  exact: float32 products instead of digits.  transposed: x U and V^T
 * instead of x V and U^T.  samples: NULL, or those of AddSamples, whose sum is added behind all that; turned: they are of
 * [n, m] matrices.
 */
typedef struct {
    const char *variant;
    int64_t threads, exact, transposed;
    const void *x;
    int64_t x_have, type, x_stride, rows, n;
    const void *y;
    int64_t y_have, y_stride;
    void *out;
    int64_t out_have, out_stride, m;
    const Task *tasks;
    int64_t task_count;
    const int32_t *slots;
    int64_t slots_have;
    const float *weights;
    int64_t weights_have, entries, places;
    const float *adds;
    int64_t adds_have;
    const Rounded *rounded;
    int64_t add_count;
    const Sample *samples;
    int64_t sample_count;
    const int64_t *starts;
    int64_t slot_count, turned;
} DeltaLinear;

int dts_delta_linear(const DeltaLinear *a);

/* out = y + rows `ids` of the dense delta of each row's task, of one dtype; the rest as in DeltaLinear.
 *
 * ids [rows] below id_count, negative: none; a task's lookup says which row of its u that is.  n: columns of the matrix.
 * slots, weights [entries]: one task a row, none of them with levels.  y and out have `have` numbers.  Returns NO_ROW
 * besides, for an id that is too large.
 */
typedef struct {
    const char *variant;
    int64_t threads;
    const int64_t *ids;
    int64_t rows, id_count;
    const void *y;
    void *out;
    int64_t have, type, n;
    const Task *tasks;
    int64_t task_count;
    const int32_t *slots;
    const float *weights;
    int64_t entries;
} Embedding;

int dts_embedding(const Embedding *a);

/* out [m, n] = base (NULL: zeros) + sum over tasks of gamma U diag(sigma) V^T, in one dtype; base and out of `have`
 * numbers; gamma [gamma_have], of slots beyond 0. */
int dts_reconstruct(const char *variant, int threads, int exact, const Task *tasks, int64_t task_count,
                    const float *gamma, int64_t gamma_have, const void *base, int64_t base_stride, void *out,
                    int64_t have, int64_t out_stride, int type, int64_t m, int64_t n);

/* Values of codes, [rows, 4 * bytes] in a dtype; levels: four values or NULL; out of out_have numbers. */
int dts_unpack(const char *variant, int threads, const uint8_t *packed, int64_t stride, int64_t rows, int64_t bytes,
               const float *levels, void *out, int64_t out_have, int64_t out_stride, int type);

/* out = y + the sum of a row's samples, weight times scale each, times x: x D^T, or transposed x D.
 *
 * exact: float32 products, where others of small strides are of x in two 8-bit digits.
 *
 * D [m, n];  x [rows, n] (transposed: m) and y, out [rows, m] (n) of one dtype without gaps, out apart from the others.
 * Slot s has samples starts[s] to starts[s + 1], starts [slot_count + 1].  The routing is that of DeltaLinear; a slot
 * outside the bank adds nothing.
 */
typedef struct {
    const char *variant;
    int64_t threads, exact, transposed;
    const void *x;
    int64_t x_have, type, rows, m, n;
    const void *y;
    int64_t y_have;
    void *out;
    int64_t out_have;
    const Sample *samples;
    int64_t sample_count;
    const int64_t *starts;
    int64_t slot_count;
    const int32_t *slots;
    int64_t slots_have;
    const float *weights;
    int64_t weights_have, entries, places;
} AddSamples;

int dts_add_samples(const AddSamples *a);

/* out = y + rows `ids` [count] (negative: zeros) of the D [m, n] of each id's entry; the rest as in AddSamples, y and
 * out [count, n].  Returns NO_ROW besides, for an id that D has not.
 */
typedef struct {
    const char *variant;
    int64_t threads;
    const int64_t *ids;
    int64_t count, m, n;
    const void *y;
    int64_t y_have;
    void *out;
    int64_t out_have, type;
    const Sample *samples;
    int64_t sample_count;
    const int64_t *starts;
    int64_t slot_count;
    const int32_t *slots;
    int64_t slots_have;
    const float *weights;
    int64_t weights_have, entries, places;
} AddSampledRows;

int dts_add_sampled_rows(const AddSampledRows *a);

/* out [entries, n] = base [n] + the sum of gamma stack [tasks, n] of each entry's slots, rounded after each addition, of
 * `count` vectors; float32, nothing overlaps.  The routing is that of DeltaLinear.  rounded [tasks], where stack is NULL:
 * the same in few bits.
 */
enum { MOST_VECTORS = 2 };
typedef struct {
    const float *base;
    int64_t base_have;
    const float *stack;
    int64_t stack_have;
    const Rounded *rounded;
    int64_t tasks;
    float *out;
    int64_t out_have;
} Vector;

typedef struct {
    const char *variant;
    const int32_t *slots;
    int64_t slots_have;
    const float *weights;
    int64_t weights_have, entries, places, n, count;
    Vector of[MOST_VECTORS];
} AddVectors;

int dts_add_vectors(const AddVectors *a);

/* out [count, n] = the numbers of each slot's vector, zeros where a slot is outside of given [have]. */
typedef struct {
    const char *variant;
    const Rounded *given;
    int64_t have;
    const int32_t *slots;
    int64_t count, n;
    float *out;
    int64_t out_have;
} RoundedRows;

int dts_rounded_rows(const RoundedRows *a);

/* For k = 0, 1, ... below count: factor[k] becomes the nearest of +1, +4, -1, -4 to factor[k] + step[k] misfit[k], and
 * what it changes by, times weights[j][k], is added to misfit[j] of every later j.  misfit is lost.
 *
 * factor, misfit [count, columns], weights [count, count], step [count]; strides count numbers from row to row. */
int dts_round_components(const char *variant, float *factor, int64_t factor_have, int64_t factor_stride, float *misfit,
                         int64_t misfit_have, int64_t misfit_stride, const float *weights, int64_t weights_have,
                         int64_t weights_stride, const float *step, int64_t step_have, int64_t count, int64_t columns);

#endif
