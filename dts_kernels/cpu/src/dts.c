/* Products with packed factors: which rows meet which task, tiles over threads, and the two-digit arithmetic.
 *
 * A pair is a row of x and a task it uses.  Per call: digits of every row, t = x V per pair, digits of
 * t * sigma * gamma, then y += t U^T, tile by tile of outputs over all pairs of the tile's rows.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels.h"
#include "parallel.h"
#include "rowblocks.h"
#ifdef __aarch64__
#ifdef __linux__
#include <sys/auxv.h>
#endif
#endif

enum {
    CHUNK = 512,        /* quads of a decoded tile: 128 KiB, inside a second-level cache */
    MOST_PAIRS = 256,   /* of one sweep over the factors; more rows sweep again */
    NEAR = 64,          /* rows of V that stay in the first-level cache while all their bytes are used */
    FETCH = 16,         /* rows of U ahead */
    NARROW = 16,        /* bytes a row below which a decoded tile beats horizontal sums */
    BLOCK_FROM = 4,     /* rows a task and a thread, on average, from which row blocks beat passes over all codes */
};

#define DECLARE(name) extern const Kernels dts_##name;
#define ADDRESS(name) &dts_##name,
VARIANTS(DECLARE)
static const Kernels *const variants[] = {VARIANTS(ADDRESS)};

static int supported(const char *name) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_cpu_init();
    int avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                 __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
    if (!strcmp(name, "avx512vbmi")) return avx512 && __builtin_cpu_supports("avx512vbmi");
    if (!strcmp(name, "avx512")) return avx512;
    if (!strcmp(name, "avx2")) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#elif defined(__aarch64__) && defined(__linux__)
    if (!strcmp(name, "neondot")) return getauxval(AT_HWCAP) >> 20 & 1; /* HWCAP_ASIMDDP */
    if (!strcmp(name, "neon")) return 1;
#elif defined(__aarch64__) && defined(__APPLE__)
    if (!strncmp(name, "neon", 4)) return 1;
#endif
    return !strcmp(name, "portable");
}

/* The i-th variant that this machine can run, fastest first, or NULL. */
const char *dts_variant(int i) {
    for (size_t k = 0; k < sizeof variants / sizeof *variants; k++)
        if (supported(variants[k]->name) && i-- == 0) return variants[k]->name;
    return NULL;
}

const Kernels *dts_find(const char *name) {
    for (size_t k = 0; k < sizeof variants / sizeof *variants; k++)
        if (!strcmp(variants[k]->name, name) && supported(name)) return variants[k];
    return NULL;
}


typedef struct {
    int32_t row, task;
    float gamma;
    Digits digits;          /* of t * sigma * gamma: in rank order, or [4][plane] for rows done directly */
    float *t;               /* float path: [4][plane] */
    uint32_t *sums;         /* [groups][tile] */
} Pair;

typedef struct {            /* the pairs of one task, beside each other */
    int64_t first, count;
    const Task *task;
    const uint8_t *u, *v;
    int64_t u_stride, v_stride, width, groups, plane;
    float u_values[4], v_values[4];
    int exact, direct;
} Segment;

typedef struct Block { struct Block *next; } Block;

typedef struct {
    const Kernels *k;
    int exact, threads, x_type, y_type;
    int64_t n, m, first_row, rows;
    const char *x, *y;
    char *out;
    int64_t x_stride, y_stride, out_stride; /* bytes */
    const int32_t *slots;   /* [entries, places], `each` rows an entry; NULL: reconstruct */
    const float *weights, *adds;
    int64_t each, places, add_count;
    Segment *segments;
    int64_t segment_count;
    Pair *pairs;
    int64_t pair_count;
    uint8_t *used;          /* rows with a task or an addend; others are copied as they are; NULL: all */
    Digits *inputs;         /* of the rows of x */
    float *input_floats;    /* [rows, n] for the float path */
    int64_t *work;          /* shrink: segment, part, parts, first pair, pairs of every item */
    char *scratch;          /* scratch_size bytes a thread */
    int64_t scratch_size;
    Block *blocks;
    int failed;
} Call;

static void fill_values(const float *levels, float *values) {
    static const float fixed[4] = {1, 4, -1, -4};
    memcpy(values, levels ? levels : fixed, sizeof fixed);
}

static Segment segment_of(const Call *call, const Task *task, int transposed, int64_t first, int64_t count) {
    Segment s = {.first = first, .count = count, .task = task};
    int lanes = call->k->lanes;
    s.u = transposed ? task->v : task->u, s.u_stride = transposed ? task->v_stride : task->u_stride;
    s.v = transposed ? task->u : task->v, s.v_stride = transposed ? task->u_stride : task->v_stride;
    s.width = (task->rank + 3) / 4;
    s.groups = (s.width + lanes - 1) / lanes;
    s.plane = round_up(s.width, 64);
    fill_values(task->levels ? task->levels + (transposed ? 4 : 0) : NULL, s.u_values);
    fill_values(task->levels ? task->levels + (transposed ? 0 : 4) : NULL, s.v_values);
    s.exact = call->exact || task->levels;
    s.direct = count <= call->k->direct_rows && s.width >= NARROW;
    return s;
}

/* ---- x to digits ------------------------------------------------------------------------------------------------- */

static void prepare_row(void *context, int64_t row, int worker) {
    Call *call = context;
    float *x = call->input_floats ? call->input_floats + row * call->n
                                  : (float *)(call->scratch + worker * call->scratch_size);
    const char *from = call->x + (call->first_row + row) * call->x_stride;
    if (call->x_type == FLOAT32 && !call->input_floats) x = (float *)(uintptr_t)from;
    else call->k->widen(from, call->x_type, call->n, x);
    if (call->inputs)
        call->k->quantise(x, call->n, round_up(call->n, 4), digit_limit(call->n), &call->inputs[row]);
}

/* ---- t = x V ----------------------------------------------------------------------------------------------------- */

static void shrink_item(void *context, int64_t item, int worker) {
    Call *call = context;
    const Kernels *k = call->k;
    const int64_t *work = call->work + 5 * item;
    const Segment *s = &call->segments[work[0]];
    int64_t begin = s->groups * work[1] / work[2], end = s->groups * (work[1] + 1) / work[2], tile = 4 * k->lanes;
    Pair *pairs = call->pairs + work[3];
    int64_t count = work[4];
    if (begin == end) return;
    if (s->exact) {
        int64_t at = begin * k->lanes, bytes = least(end * k->lanes, s->width) - at;
        for (int64_t p = 0; p < count; p++)
            k->shrink_float(call->input_floats + pairs[p].row * call->n, s->v + at, s->v_stride, call->n, bytes,
                            s->v_values, pairs[p].t + at, s->plane);
        return;
    }
    const int8_t *digits[2 * MOST_PAIRS];
    uint32_t *sums[MOST_PAIRS];
    uint8_t *decoded = (uint8_t *)call->scratch + worker * call->scratch_size;
    int64_t step = s->direct ? NEAR : 4 * CHUNK;
    for (int64_t n0 = 0; n0 < call->n; n0 += step) {
        int64_t rows = least(step, call->n - n0);
        const uint8_t *v = s->v + n0 * s->v_stride;
        int64_t ahead = least(NEAR, call->n - n0 - rows); /* rows to fetch meanwhile, some for each group */
        for (int64_t p = 0; p < count; p++) {
            digits[2 * p] = call->inputs[pairs[p].row].high + n0;
            digits[2 * p + 1] = call->inputs[pairs[p].row].low + n0;
        }
        for (int64_t g = begin; g < end; g++) {
            int bytes = (int)least(k->lanes, s->width - g * k->lanes);
            for (int64_t p = 0; p < count; p++) sums[p] = pairs[p].sums + g * tile;
            if (s->direct) {
                int64_t row = rows + ahead * (g - begin) / (end - begin), last = rows + ahead * (g - begin + 1) / (end - begin);
                for (; row < last; row++)
                    for (int64_t at = begin * k->lanes; at < end * k->lanes; at += 64)
                        __builtin_prefetch(v + row * s->v_stride + at);
                k->shrink((int)count, v + g * k->lanes, s->v_stride, rows, bytes, digits, sums);
            } else {
                k->decode_v(v + g * k->lanes, s->v_stride, rows, bytes, decoded);
                k->multiply(count, (rows + 3) / 4, decoded, digits, sums);
            }
        }
    }
}

/* t * sigma * gamma of one pair, as floats in planes or as digits. */
static void scale_item(void *context, int64_t item, int worker) {
    Call *call = context;
    const Kernels *k = call->k;
    Pair *pair = &call->pairs[item];
    const Segment *s = NULL;
    for (int64_t i = 0; i < call->segment_count; i++)
        if (item >= call->segments[i].first && item < call->segments[i].first + call->segments[i].count)
            s = &call->segments[i];
    const float *sigma = s->task->sigma;
    int64_t rank = s->task->rank;
    if (s->exact) {
        for (int i = 0; i < 4; i++)
            for (int64_t j = 0; j < s->plane; j++)
                pair->t[i * s->plane + j] *= 4 * j + i < rank ? sigma[4 * j + i] * pair->gamma : 0.0f;
        return;
    }
    float *t = (float *)(call->scratch + worker * call->scratch_size);
    const Digits *x = &call->inputs[pair->row];
    float scale = x->scale * pair->gamma;
    uint32_t offset = 4 * x->sum;
    for (int64_t g = 0; g < s->groups; g++)
        for (int i = 0; i < 4; i++) {
            const uint32_t *sums = pair->sums + (4 * g + i) * k->lanes;
            float *to = t + 4 * g * k->lanes + i;
            for (int j = 0; j < k->lanes; j++) to[4 * j] = (float)(int32_t)(sums[j] - offset);
        }
    for (int64_t r = 0; r < rank; r++) t[r] *= sigma[r] * scale;
    if (!s->direct) {
        k->quantise(t, rank, 4 * s->width, digit_limit(rank), &pair->digits);
        return;
    }
    Digits flat = {(int8_t *)(t + 4 * s->plane), (int8_t *)(t + 4 * s->plane) + 4 * s->plane, 0, 0};
    k->quantise(t, rank, 4 * s->plane, digit_limit(rank), &flat);
    for (int i = 0; i < 4; i++)
        for (int64_t j = 0; j < s->plane; j++) {
            pair->digits.high[i * s->plane + j] = flat.high[4 * j + i];
            pair->digits.low[i * s->plane + j] = flat.low[4 * j + i];
        }
    pair->digits.scale = flat.scale;
    pair->digits.sum = flat.sum;
}

/* ---- y += t U^T --------------------------------------------------------------------------------------------------- */

static void expand_exact(const Call *call, const Segment *s, int64_t o0, int64_t columns, float *y, int64_t tile) {
    for (int64_t o = 0; o < columns; o++)
        for (int64_t p = s->first; p < s->first + s->count; p++)
            y[call->pairs[p].row * tile + o] += call->k->expand_float(
                s->u + (o0 + o) * s->u_stride, s->width, s->u_values, call->pairs[p].t, s->plane);
}

static void expand_direct(const Call *call, const Segment *s, int64_t o0, int64_t columns, float *y, int64_t tile) {
    const Pair *pairs = call->pairs + s->first;
    const int8_t *digits[2 * MAX_ROWS];
    for (int64_t p = 0; p < s->count; p++)
        digits[2 * p] = pairs[p].digits.high, digits[2 * p + 1] = pairs[p].digits.low;
    for (int64_t o = 0; o < columns; o += 4) {
        const uint8_t *u[4];
        uint32_t sums[MAX_ROWS][4];
        for (int i = 0; i < 4; i++) {
            u[i] = s->u + (o0 + least(o + i, columns - 1)) * s->u_stride;
            if (o0 + o + i + FETCH >= call->m) continue;
            for (int64_t at = 0; at < s->width; at += 64) __builtin_prefetch(u[i] + FETCH * s->u_stride + at);
        }
        call->k->expand4((int)s->count, u, s->width, digits, s->plane, sums);
        for (int64_t p = 0; p < s->count; p++)
            for (int i = 0; i < 4 && o + i < columns; i++)
                y[pairs[p].row * tile + o + i] += pairs[p].digits.scale * (float)(int32_t)(sums[p][i] - 4 * pairs[p].digits.sum);
    }
}

static void expand_tile(const Call *call, const Segment *s, int64_t o0, int64_t columns, float *y, int64_t tile,
                        uint8_t *decoded, uint32_t *totals) {
    const Pair *pairs = call->pairs + s->first;
    const int8_t *digits[2 * MOST_PAIRS];
    uint32_t *sums[MOST_PAIRS];
    memset(totals, 0, (size_t)(s->count * tile) * sizeof *totals);
    for (int64_t p = 0; p < s->count; p++) sums[p] = totals + p * tile;
    for (int64_t j = 0; j < s->width; j += CHUNK) {
        int64_t quads = least(CHUNK, s->width - j);
        for (int64_t p = 0; p < s->count; p++)
            digits[2 * p] = pairs[p].digits.high + 4 * j, digits[2 * p + 1] = pairs[p].digits.low + 4 * j;
        call->k->decode_columns(s->u + o0 * s->u_stride + j, s->u_stride, columns, quads, decoded);
        call->k->multiply(s->count, quads, decoded, digits, sums);
    }
    for (int64_t p = 0; p < s->count; p++) {
        float scale = pairs[p].digits.scale, *to = y + pairs[p].row * tile;
        uint32_t offset = 4 * pairs[p].digits.sum;
        for (int64_t c = 0; c < columns; c++) to[c] += scale * (float)(int32_t)(sums[p][c] - offset);
    }
}


/* y = the addends of each row's tasks, times their gammas. */
static void start_tile(const Call *call, int64_t o0, int64_t columns, float *y, int64_t tile) {
    memset(y, 0, (size_t)(call->rows * tile) * sizeof *y);
    for (int64_t i = 0; call->adds && i < call->rows * call->places; i++) {
        int64_t at = (call->first_row + i / call->places) / call->each * call->places + i % call->places;
        if (call->slots[at] < 0 || call->slots[at] >= call->add_count) continue;
        const float *add = call->adds + call->slots[at] * call->m + o0;
        float *to = y + i / call->places * tile;
        for (int64_t c = 0; c < columns; c++) to[c] += call->weights[at] * add[c];
    }
}

static void expand_item(void *context, int64_t item, int worker) {
    Call *call = context;
    int64_t tile = 4 * call->k->lanes, o0 = item * tile, columns = least(tile, call->m - o0);
    char *scratch = call->scratch + worker * call->scratch_size;
    uint8_t *decoded = (uint8_t *)scratch;
    float *y = (float *)(scratch + CHUNK * 4 * tile);
    uint32_t *totals = (uint32_t *)(y + call->rows * tile);
    start_tile(call, o0, columns, y, tile);
    for (int64_t i = 0; i < call->segment_count; i++) {
        const Segment *s = &call->segments[i];
        if (s->exact) expand_exact(call, s, o0, columns, y, tile);
        else if (s->direct) expand_direct(call, s, o0, columns, y, tile);
        else expand_tile(call, s, o0, columns, y, tile, decoded, totals);
    }
    for (int64_t r = 0; r < call->rows; r++) {
        int64_t row = call->first_row + r, at = o0 * size_of(call->y_type);
        if (call->used && !call->used[r]) {
            char *to = call->out + row * call->out_stride + at;
            const char *from = call->y ? call->y + row * call->y_stride + at : NULL;
            if (!from) memset(to, 0, (size_t)(columns * size_of(call->y_type)));
            else if (from != to) memcpy(to, from, (size_t)(columns * size_of(call->y_type)));
            continue;
        }
        call->k->narrow(y + r * tile, call->y ? call->y + row * call->y_stride + at : NULL,
                        call->out + row * call->out_stride + at, call->y_type, columns);
    }
}

/* ---- one sweep: at most MOST_PAIRS pairs -------------------------------------------------------------------------- */


/* Memory that lives as long as the call.  NULL (and call->failed) when there is none. */
static void *take(Call *call, int64_t size) {
    Block *block = NULL;
    if (posix_memalign((void **)&block, 64, (size_t)(64 + round_up(size, 64)))) {
        call->failed = 1;
        return NULL;
    }
    block->next = call->blocks;
    call->blocks = block;
    return (char *)block + 64;
}

static void give_back(Call *call) {
    while (call->blocks) {
        Block *next = call->blocks->next;
        free(call->blocks);
        call->blocks = next;
    }
}

/* Memory of every pair's sums and digits (or float t). */
static void take_pairs(Call *call, const Segment *s, int with_sums) {
    int64_t tile = 4 * call->k->lanes, sums = s->groups * tile * 4, digits = round_up(4 * s->plane, 64);
    int64_t each = s->exact ? 16 * s->plane : (with_sums ? sums : 0) + 2 * digits;
    char *at = take(call, each * s->count);
    for (int64_t p = s->first; at && p < s->first + s->count; p++, at += each) {
        Pair *pair = &call->pairs[p];
        if (s->exact) {
            pair->t = memset(at, 0, (size_t)each);
            continue;
        }
        pair->digits.high = (int8_t *)at, pair->digits.low = (int8_t *)at + digits;
        if (with_sums) pair->sums = memset(at + 2 * digits, 0, (size_t)sums);
    }
}

static void take_scratch(Call *call) {
    int64_t tile = 4 * call->k->lanes, widest = 0, most = 0;
    for (int64_t i = 0; i < call->segment_count; i++) {
        if (call->segments[i].plane > widest) widest = call->segments[i].plane;
        if (call->segments[i].count > most) most = call->segments[i].count;
    }
    int64_t decoded = CHUNK * 4 * tile, expand = decoded + (call->rows + most) * tile * 4;
    int64_t needs[] = {call->n * 4, 4 * CHUNK * tile, expand, (widest + tile) * 24};
    call->scratch_size = 0;
    for (int i = 0; i < 4; i++)
        if (needs[i] > call->scratch_size) call->scratch_size = round_up(needs[i], 64);
    call->scratch = take(call, call->scratch_size * call->threads);
}

static int64_t codes(const Call *call) {
    int64_t sum = 0;
    for (int64_t i = 0; i < call->segment_count; i++)
        sum += call->segments[i].task->rank * call->segments[i].count * (call->n + call->m);
    return sum;
}

static int64_t plan_shrink(Call *call) {
    int64_t blocks = 0, items = 0;
    enum { BLOCK = 96 };  /* pairs that use a decoded tile before it is decoded again */
    for (int64_t i = 0; i < call->segment_count; i++) blocks += (call->segments[i].count + BLOCK - 1) / BLOCK;
    int64_t most = 0;
    for (int64_t i = 0; i < call->segment_count; i++) most += call->segments[i].groups * blocks;
    call->work = take(call, 5 * 8 * (most ? most : 1));
    for (int64_t i = 0; call->work && i < call->segment_count; i++) {
        const Segment *s = &call->segments[i];
        /* one task: its ranks are split over the threads; many: a task a thread, every byte read once, in order */
        int64_t parts = blocks >= 4 * call->threads ? 1 : s->direct ? call->threads : 4 * call->threads;
        for (int64_t p = 0; p < s->count; p += BLOCK)
            for (int64_t part = 0; part < least(parts, s->groups); part++) {
                int64_t item[] = {i, part, least(parts, s->groups), s->first + p, least(BLOCK, s->count - p)};
                memcpy(call->work + 5 * items++, item, sizeof item);
            }
    }
    return items;
}

/* Whether the tasks of some slots are of [m, n] (m < 0: any rows) and all there. */
static int tasks_fit(const Task *tasks, int64_t task_count, const int32_t *slots, int64_t count, int64_t m, int64_t n) {
    if (task_count < 0 || (task_count && !tasks)) return 0;
    for (int64_t i = 0; i < count; i++)
        if (slots[i] >= 0 && slots[i] < task_count && !task_fits(&tasks[slots[i]], m, n)) return 0;
    return 1;
}

static int64_t size_of_row(const Call *call) { return round_up(call->n, 64); }

/* y = or += the delta of the rows and pairs that the call holds. */
static void sweep(Call *call) {
    int exact = 0, digits = 0;
    for (int64_t i = 0; i < call->segment_count; i++)
        if (call->segments[i].exact) exact = 1;
        else digits = 1;
    call->threads = dts_useful_threads(call->threads, codes(call));
    call->inputs = NULL, call->input_floats = NULL;
    if (exact) call->input_floats = take(call, call->rows * call->n * 4);
    if (digits) {
        call->inputs = take(call, call->rows * (int64_t)sizeof(Digits));
        int8_t *at = take(call, 2 * size_of_row(call) * call->rows);
        for (int64_t r = 0; !call->failed && r < call->rows; r++, at += 2 * size_of_row(call))
            call->inputs[r].high = at, call->inputs[r].low = at + size_of_row(call);
    }
    for (int64_t i = 0; i < call->segment_count; i++) take_pairs(call, &call->segments[i], 1);
    int64_t items = plan_shrink(call), tile = 4 * call->k->lanes;
    take_scratch(call);
    if (call->failed) return;
    if (call->segment_count) dts_parallel(call->rows > 1 ? call->threads : 1, call->rows, prepare_row, call);
    dts_parallel(call->threads, items, shrink_item, call);
    dts_parallel(call->threads, call->pair_count, scale_item, call);
    dts_parallel(call->threads, (call->m + tile - 1) / tile, expand_item, call);
}

/* The whole call in row blocks (rowblocks.c) where each row has at most one task of fixed values.  Returns whether it
 * was taken. */
static int in_blocks(Call *call, int transposed, int64_t rows, const Task *tasks, int64_t task_count) {
    if (call->exact || rows < BLOCK_FROM) return 0;
    TaskRow *list = take(call, rows * (int64_t)sizeof(TaskRow));
    if (!list) return 1;
    for (int64_t entry = 0; entry < rows / call->each; entry++) {
        TaskRow one = {.slot = -1};
        for (int64_t at = entry * call->places; at < (entry + 1) * call->places; at++) {
            int32_t slot = call->slots[at];
            int factors = slot >= 0 && slot < task_count && tasks[slot].rank;
            if (!factors && !(call->adds && slot >= 0 && slot < call->add_count)) continue;
            if (one.slot >= 0 || (factors && tasks[slot].levels)) return 0;
            one.slot = slot, one.gamma = call->weights[at];
        }
        for (int64_t i = entry * call->each; i < (entry + 1) * call->each; i++) list[i] = one, list[i].row = i;
    }
    RowBlocks work = {.k = call->k, .transposed = transposed, .type = call->x_type, .n = call->n, .m = call->m,
                      .x = call->x, .y = call->y, .out = call->out, .x_stride = call->x_stride,
                      .y_stride = call->y_stride, .out_stride = call->out_stride, .tasks = tasks,
                      .task_count = task_count, .adds = call->adds, .add_count = call->add_count};
    int done = dts_row_blocks(&work, call->threads, list, rows, BLOCK_FROM);
    call->failed = done < 0;
    return done;
}

/* out = y + the delta of every row.
 *
 * x [rows, n], y and out [rows, m] (y NULL: zeros; y may be out); strides in bytes, dtypes of kernels.h.
 * Row i uses entry i / (rows / entries) of slots and weights [entries, places]; a slot outside the tasks, or a task
 * of rank 0, adds nothing.  adds [add_count, m] or NULL: gamma times its row of the slot is added too.  exact: float32
 * products instead of digits.  A count behind a pointer says how many numbers are there.  Returns one of kernels.h:
 * NO_FIT, having written nothing, where one of them is too small or a task is of another size.
 */
int dts_delta_linear(const char *variant, int threads, int exact, int transposed, const void *x, int64_t x_have,
                     int x_type, int64_t x_stride, int64_t rows, int64_t n, const void *y, int64_t y_have,
                     int64_t y_stride, void *out, int64_t out_have, int64_t out_stride, int64_t m, const Task *tasks,
                     int64_t task_count, const int32_t *slots, int64_t slots_have, const float *weights,
                     int64_t weights_have, int64_t entries, int64_t places, const float *adds, int64_t adds_have,
                     int64_t add_count) {
    Call call = {.k = dts_find(variant), .exact = exact, .x_type = x_type, .y_type = x_type, .n = n, .m = m, .x = x,
                 .y = y, .out = out, .x_stride = x_stride, .y_stride = y_stride, .out_stride = out_stride,
                 .slots = slots, .weights = weights, .adds = adds, .add_count = add_count, .places = places,
                 .each = entries ? rows / entries : 1};
    if (!call.k) return NO_VARIANT;
    if (!known_type(x_type)) return NO_FIT;
    int64_t size = size_of(x_type);
    if (!holds(x, x_have, rows, n, x_stride / size) || (y && !holds(y, y_have, rows, m, y_stride / size)) ||
        !holds(out, out_have, rows, m, out_stride / size) || (adds && !holds(adds, adds_have, add_count, m, m)) ||
        !routes(slots, slots_have, weights, weights_have, entries, places, rows) ||
        !tasks_fit(tasks, task_count, slots, entries * places, transposed ? n : m, transposed ? m : n))
        return NO_FIT;
    if (!rows || !m) return DONE;
    call.threads = threads > 0 ? threads : 1;
    int taken = entries && in_blocks(&call, transposed, rows, tasks, task_count);
    give_back(&call);
    if (taken) return call.failed;
    int64_t step = places && MOST_PAIRS / places > 0 ? MOST_PAIRS / places : places ? 1 : MOST_PAIRS, each = call.each;
    for (int64_t first = 0; first < rows && !call.failed; first += step) {
        call.threads = threads > 0 ? threads : 1;
        call.first_row = first;
        call.rows = least(step, rows - first);
        int64_t *counts = take(&call, (task_count + 1) * 8);
        call.pairs = take(&call, call.rows * places * (int64_t)sizeof(Pair));
        call.segments = take(&call, least(task_count, call.rows * places) * (int64_t)sizeof(Segment));
        call.used = take(&call, call.rows);
        if (!call.failed) {
            memset(call.used, 0, (size_t)call.rows);
            memset(counts, 0, (size_t)(task_count + 1) * 8);
            memset(call.pairs, 0, (size_t)(call.rows * places) * sizeof(Pair));
            for (int64_t i = 0; i < call.rows * places; i++) {
                int64_t slot = slots[(first + i / places) / each * places + i % places];
                if (slot >= 0 && slot < task_count) counts[slot]++;
                call.used[i / places] |= slot >= 0 && ((slot < task_count && tasks[slot].rank) || (adds && slot < add_count));
            }
            call.pair_count = call.segment_count = 0;
            for (int64_t slot = 0; slot < task_count; slot++) {
                int64_t count = tasks[slot].rank ? counts[slot] : 0;
                if (count) call.segments[call.segment_count++] = segment_of(&call, &tasks[slot], transposed, call.pair_count, count);
                counts[slot] = count ? call.pair_count : -1;
                call.pair_count += count;
            }
            for (int64_t i = 0; i < call.rows * places; i++) {
                int64_t at = (first + i / places) / each * places + i % places, slot = slots[at];
                if (slot < 0 || slot >= task_count || counts[slot] < 0) continue;
                Pair *pair = &call.pairs[counts[slot]++];
                pair->row = (int32_t)(i / places);
                pair->gamma = weights[at];
            }
            sweep(&call);
        }
        give_back(&call);
    }
    return call.failed;
}

/* ---- embeddings ----------------------------------------------------------------------------------------------------- */

/* The same for one record of these arguments: Python converts one thing, not 28. */
typedef struct {
    const char *variant;
    int64_t threads, exact, transposed;
    const void *x;
    int64_t x_have, x_type, x_stride, rows, n;
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
    int64_t adds_have, add_count;
} DeltaLinear;

int dts_delta_linear_record(const DeltaLinear *a) {
    return dts_delta_linear(a->variant, (int)a->threads, (int)a->exact, (int)a->transposed, a->x, a->x_have,
                            (int)a->x_type, a->x_stride, a->rows, a->n, a->y, a->y_have, a->y_stride, a->out,
                            a->out_have, a->out_stride, a->m, a->tasks, a->task_count, a->slots, a->slots_have,
                            a->weights, a->weights_have, a->entries, a->places, a->adds, a->adds_have, a->add_count);
}

/* out = y + rows `ids` of the dense delta of each row's task, in one dtype; the other arguments as in dts_delta_linear.
 *
 * ids [rows] below id_count, negative: none; a task's lookup says which row of its u that is.  n: columns of the matrix.
 * slots, weights [entries]: one task a row, none of them with levels.  y and out have `have` numbers.  Returns NO_ROW
 * besides, for an id that is too large.
 */
int dts_embedding(const char *variant, int threads, const int64_t *ids, int64_t rows, int64_t id_count, const void *y,
                  void *out, int64_t have, int type, int64_t n, const Task *tasks, int64_t task_count,
                  const int32_t *slots, const float *weights, int64_t entries) {
    const Kernels *k = dts_find(variant);
    if (!k) return NO_VARIANT;
    if (!known_type(type) || !holds(out, have, rows, n, n) || !holds(ids, rows, rows, 1, 1) ||
        !routes(slots, entries, weights, entries, entries, 1, rows) || !tasks_fit(tasks, task_count, slots, entries, -1, n))
        return NO_FIT;
    for (int64_t i = 0; i < entries; i++)
        if (slots[i] >= 0 && slots[i] < task_count && tasks[slots[i]].rank && (tasks[slots[i]].levels ||
            (tasks[slots[i]].lookup ? tasks[slots[i]].lookup_count < id_count : tasks[slots[i]].u_rows < id_count)))
            return NO_FIT;
    if (!rows || !n) return DONE;
    TaskRow *list = malloc((size_t)rows * sizeof *list);
    if (!list) return 1;
    int64_t each = rows / entries, stride = n * size_of(type);
    for (int64_t i = 0; i < rows; i++) {
        int32_t slot = slots[i / each];
        int some = ids[i] >= 0 && slot >= 0 && slot < task_count && tasks[slot].rank;
        int64_t id = some && ids[i] < id_count && tasks[slot].lookup ? tasks[slot].lookup[ids[i]] : ids[i];
        list[i] = (TaskRow){.row = i, .id = id, .slot = some && id >= 0 ? slot : -1, .gamma = weights[i / each]};
        if (ids[i] >= id_count || (list[i].slot >= 0 && id >= tasks[slot].u_rows)) {
            free(list);
            return ids[i] >= id_count ? NO_ROW : NO_FIT;
        }
    }
    RowBlocks work = {.k = k, .type = type, .m = n, .y = y, .out = out, .y_stride = stride, .out_stride = stride,
                      .tasks = tasks, .task_count = task_count};
    int done = dts_row_blocks(&work, threads, list, rows, 0);
    free(list);
    return done < 0;
}

/* The same for one record of these arguments. */
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

int dts_embedding_record(const Embedding *a) {
    return dts_embedding(a->variant, (int)a->threads, a->ids, a->rows, a->id_count, a->y, a->out, a->have,
                         (int)a->type, a->n, a->tasks, a->task_count, a->slots, a->weights, a->entries);
}

/* ---- dense ------------------------------------------------------------------------------------------------------- */

void dts_decode_row(const uint8_t *row, int64_t rank, const float *values, const float *sigma, float gamma, float *t) {
    for (int64_t r = 0; r < rank; r++) t[r] = values[row[r / 4] >> 2 * (r % 4) & 3] * (sigma[r] * gamma);
}

/* Rows of the dense matrix are products of t = sigma * gamma * u with V. */
static void rows_item(void *context, int64_t item, int worker) {
    Call *call = context;
    Pair *pair = &call->pairs[item];
    const Segment *s = &call->segments[pair->task];
    const uint8_t *row = s->v + (call->first_row + pair->row) * s->v_stride;
    float *t = (float *)(call->scratch + worker * call->scratch_size);
    dts_decode_row(row, s->task->rank, s->v_values, s->task->sigma, pair->gamma, t);
    if (!s->exact) {
        call->k->quantise(t, s->task->rank, 4 * s->width, digit_limit(s->task->rank), &pair->digits);
        return;
    }
    for (int64_t r = 0; r < s->task->rank; r++) pair->t[r % 4 * s->plane + r / 4] = t[r];
}

/* out [m, n] = base (NULL: zeros) + sum over tasks of gamma U diag(sigma) V^T, in one dtype; strides in bytes, and base
 * and out of `have` numbers; gamma [gamma_have], of slots beyond 0. */
int dts_reconstruct(const char *variant, int threads, int exact, const Task *tasks, int64_t task_count,
                    const float *gamma, int64_t gamma_have, const void *base, int64_t base_stride, void *out,
                    int64_t have, int64_t out_stride, int type, int64_t m, int64_t n) {
    Call call = {.k = dts_find(variant), .exact = exact, .y_type = type, .n = 0, .m = n, .y = base, .out = out,
                 .y_stride = base_stride, .out_stride = out_stride};
    if (!call.k) return NO_VARIANT;
    if (!known_type(type)) return NO_FIT;
    int64_t size = size_of(type);
    if (!holds(out, have, m, n, out_stride / size) || (base && !holds(base, have, m, n, base_stride / size)) ||
        !holds(gamma, gamma_have, 1, gamma_have, 0) || !tasks_fit(tasks, task_count, NULL, 0, m, n))
        return NO_FIT;
    if (!m || !n) return DONE;
    int64_t used = 0, tile = 4 * call.k->lanes;
    task_count = least(task_count, gamma_have);
    for (int64_t i = 0; i < task_count; i++)
        if (gamma[i] != 0 && !task_fits(&tasks[i], m, n)) return NO_FIT;
    for (int64_t i = 0; i < task_count; i++) used += tasks[i].rank && gamma[i] != 0;
    int64_t step = used ? MOST_PAIRS / used > 8 ? MOST_PAIRS / used : 8 : MOST_PAIRS;
    for (int64_t first = 0; first < m && !call.failed; first += step) {
        call.threads = threads > 0 ? threads : 1;
        call.first_row = first;
        call.rows = least(step, m - first);
        call.segments = take(&call, used * (int64_t)sizeof(Segment));
        call.pairs = take(&call, used * call.rows * (int64_t)sizeof(Pair));
        call.segment_count = call.pair_count = 0;
        for (int64_t i = 0; !call.failed && i < task_count; i++) {
            if (!tasks[i].rank || gamma[i] == 0) continue;
            Segment *s = &call.segments[call.segment_count];
            *s = segment_of(&call, &tasks[i], 1, call.pair_count, call.rows); /* V's rows are the outputs */
            s->direct = 0;
            for (int64_t r = 0; r < call.rows; r++)
                call.pairs[call.pair_count++] = (Pair){.row = (int32_t)r, .task = (int32_t)call.segment_count, .gamma = gamma[i]};
            take_pairs(&call, s, 0);
            call.segment_count++;
        }
        take_scratch(&call);
        if (!call.failed) {
            dts_parallel(call.threads, call.pair_count, rows_item, &call);
            dts_parallel(call.threads, (n + tile - 1) / tile, expand_item, &call);
        }
        give_back(&call);
    }
    return call.failed;
}

/* ---- unpacking for the library's products --------------------------------------------------------------------------- */

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
    for (int64_t row = item * NEAR; row < least(u->rows, (item + 1) * NEAR); row++) {
        const uint8_t *from = u->packed + row * u->stride;
        char *to = u->out + row * u->out_stride;
        if (u->type == FLOAT32) for (int64_t j = 0; j < u->bytes; j++) memcpy(to + 16 * j, u->table[from[j]], 16);
        else for (int64_t j = 0; j < u->bytes; j++) memcpy(to + 8 * j, u->table[from[j]], 8);
    }
}

/* Values of codes, [rows, 4 * bytes] in a dtype; levels: four values or NULL; strides in bytes, out of out_have numbers. */
int dts_unpack(const char *variant, int threads, const uint8_t *packed, int64_t stride, int64_t rows, int64_t bytes,
               const float *levels, void *out, int64_t out_have, int64_t out_stride, int type) {
    const Kernels *k = dts_find(variant);
    if (!k) return NO_VARIANT;
    if (!known_type(type) || rows < 0 || bytes < 0 || stride < 0 || (!packed && rows && bytes) ||
        !holds(out, out_have, rows, 4 * bytes, out_stride / size_of(type)))
        return NO_FIT;
    Unpack unpack = {.packed = packed, .out = out, .stride = stride, .rows = rows, .bytes = bytes,
                     .out_stride = out_stride, .type = type};
    float values[4];
    fill_values(levels, values);
    for (int b = 0; b < 256; b++) {
        float four[4];
        for (int i = 0; i < 4; i++) four[i] = values[b >> 2 * i & 3];
        k->narrow(four, NULL, unpack.table[b], type, 4);
    }
    dts_parallel(threads, (rows + NEAR - 1) / NEAR, unpack_item, &unpack);
    return 0;
}
