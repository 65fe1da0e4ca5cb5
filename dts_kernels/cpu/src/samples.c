/* Products with sampled elements: which rows meet which sample, how x is laid out for them, and tiles over threads.
 *
 * A pair is a row of x and a sample it uses.  The pairs of one sample go in batches: a panel of rows, a row a lane, or
 * a few rows at a time.  A tile is some of the outputs of all rows, summed in float32 batch by batch and rounded once.
 */
#include <stdlib.h>
#include <string.h>

#include "dts.h"
#include "kernels.h"
#include "parallel.h"
#include "scratch.h"
#ifdef __SSE__
#include <xmmintrin.h>
#endif

enum {
    MOST_PAIRS = 256,    /* of one sweep over the samples; more rows sweep again */
    MOST_OWN = 2048,     /* the same where each row has one of its own, so that no tile holds them all */
    NEAR = 8192,         /* numbers of x in the first-level cache while all rows of D in a tile use them */
    NEAR_PANEL = 32768,  /* the same of a panel, in the second-level cache: more elements of a row of D at once */
    TILE = 256,          /* outputs, about */
    PIECE = MOST_STRIDE, /* numbers of a row that are converted at a time */
    COLUMNS = 64,        /* of a panel that are turned at a time */
    MOST_WIDTH = 64,     /* rows of a panel: four registers of 16 */
    WORK = 4,            /* codes of packed factors that take as long as one sampled element in float32 */
};

typedef struct {
    int64_t row;
    float factor;
} Pair;

typedef struct { /* pairs of one sample, beside each other */
    const Sample *sample;
    const Pair *pairs;
    int64_t count, elements, groups, pitch,
        part_groups; /* groups: that are laid out, part_groups: elements of a part */
    int vectors;     /* of a panel; 0: few rows */
    int digits;      /* x in whole numbers, the scales of its rows behind all of them */
    int turned;      /* these for variant_turns.h: `each` bytes a row */
    float *x;        /* laid out as sample_pitch says, or a panel; few rows: `each` numbers apart */
    int64_t each;
} Batch;

typedef struct {
    const Kernels *k;
    int threads, transposed, exact, type;
    int own;                       /* a sample a row, all of them turned: y goes straight to out */
    int64_t m, n, rows, first_row; /* m, n: of D;  rows: of the sweep */
    int64_t in, out_columns;       /* numbers of a row of x and of y */
    const char *x, *y;
    char *out;
    Batch *batches;
    int64_t batch_count, pieces; /* pieces: of a batch's x that are laid out by themselves */
    int64_t tile;
    char *scratch;
    int64_t scratch_size;
} Call;

/* ---- x for the inner loops -------------------------------------------------------------------------------------- */

static void read_x(const Call *call, const Pair *pair, int64_t first, int64_t count, float *to) {
    const char *from = call->x + ((call->first_row + pair->row) * call->in + first) * size_of(call->type);
    call->k->widen(from, call->type, count, to);
}

/* whole: the row in whole numbers, or NULL */
static void lay_turned(const Call *call, const Batch *b, int64_t row, int64_t group, int64_t last, const float *whole) {
    float piece[PIECE];
    int64_t stride = b->sample->stride, some = PIECE / stride;
    for (int64_t g0 = group; g0 < last; g0 += some) {
        int64_t g1 = least(g0 + some, last), first = g0 * stride, count = (g1 - g0) * stride;
        int64_t own = first < call->in ? least(count, call->in - first) : 0;
        if (own && whole) memcpy(piece, whole + first, (size_t)own * 4);
        else if (own) read_x(call, &b->pairs[row], first, own, piece);
        for (int64_t c = own; c < count; c++) piece[c] = 0; /* columns that do not exist */
        for (int64_t g = g0; g < g1; g++) {
            float *to = b->x + row * b->each + g * b->pitch;
            for (int64_t at = 0; at < b->pitch; at += stride)
                memcpy(to + at, piece + (g - g0) * stride, (size_t)least(stride, b->pitch - at) * 4);
        }
    }
    if (last == b->groups) memset(b->x + row * b->each + last * b->pitch, 0, (size_t)call->k->lanes * 4);
}

/* to[c][r] = from[r][c] */
static void turn(const float *from, int64_t from_pitch, int64_t rows, int64_t columns, float *to, int64_t to_pitch) {
    int64_t r = 0;
#ifdef __SSE__
    for (; r + 4 <= rows; r += 4) {
        int64_t c = 0;
        const float *f = from + r * from_pitch;
        for (; c + 4 <= columns; c += 4) {
            __m128 a0 = _mm_loadu_ps(f + c), a1 = _mm_loadu_ps(f + from_pitch + c);
            __m128 a2 = _mm_loadu_ps(f + 2 * from_pitch + c), a3 = _mm_loadu_ps(f + 3 * from_pitch + c);
            _MM_TRANSPOSE4_PS(a0, a1, a2, a3);
            float *t = to + c * to_pitch + r;
            _mm_storeu_ps(t, a0), _mm_storeu_ps(t + to_pitch, a1);
            _mm_storeu_ps(t + 2 * to_pitch, a2), _mm_storeu_ps(t + 3 * to_pitch, a3);
        }
        for (; c < columns; c++)
            for (int64_t i = 0; i < 4; i++) to[c * to_pitch + r + i] = f[i * from_pitch + c];
    }
#endif
    for (; r < rows; r++)
        for (int64_t c = 0; c < columns; c++) to[c * to_pitch + r] = from[r * from_pitch + c];
}

static void lay_panel(const Call *call, const Batch *b, int64_t first, int64_t last) {
    int64_t width = b->vectors * call->k->lanes;
    float pieces[MOST_WIDTH][COLUMNS];
    for (int64_t c0 = first; c0 < last; c0 += COLUMNS) {
        int64_t count = least(COLUMNS, last - c0), own = least(count, call->in - c0);
        if (own < count || b->count < width) memset(pieces, 0, sizeof pieces);
        for (int64_t lane = 0; lane < b->count && own > 0; lane++) read_x(call, &b->pairs[lane], c0, own, pieces[lane]);
        turn(pieces[0], COLUMNS, width, count, b->x + c0 * width, width);
    }
}

static float *scales_of(const Batch *b) {
    return (float *)(void *)((char *)b->x + b->count * b->each * (b->turned ? 1 : 4));
}

/* A row of x, as float32 or in whole numbers, in the floats of a thread or where it is. */
static const float *row_of(const Call *call, const Batch *b, int64_t row, float *floats) {
    const float *x = (const float *)(const void *)call->x + (call->first_row + b->pairs[row].row) * call->in;
    if (call->type != FLOAT32) read_x(call, &b->pairs[row], 0, call->in, floats), x = floats;
    return x;
}

static void lay_digits(const Call *call, const Batch *b, int64_t first, int64_t last, float *floats) {
    int limit = digit_limit(b->elements);
    for (int64_t r = first; r < last; r++) {
        const float *x = row_of(call, b, r, floats);
        int16_t *to = (int16_t *)(void *)((char *)b->x + r * b->each);
        scales_of(b)[r] = call->k->samples_lay(x, call->in, b->sample->stride, limit, to);
    }
}

static void lay_item(void *context, int64_t item, int worker) {
    const Call *call = context;
    const Batch *b = &call->batches[item / call->pieces];
    int64_t piece = item % call->pieces, pieces = call->pieces;
    float *floats = (float *)(void *)(call->scratch + worker * call->scratch_size);
    if (b->turned) {
        lay_digits(call, b, b->count * piece / pieces, b->count * (piece + 1) / pieces, floats);
    } else if (b->vectors) {
        int64_t size = call->transposed ? call->m : b->groups * b->sample->stride;
        lay_panel(call, b, size * piece / pieces, size * (piece + 1) / pieces);
    } else if (call->transposed) {
        int64_t first = call->in * piece / pieces, last = call->in * (piece + 1) / pieces;
        for (int64_t r = 0; r < b->count; r++)
            read_x(call, &b->pairs[r], first, last - first, b->x + r * b->each + first);
    } else {
        for (int64_t r = 0; r < b->count; r++) {
            if (b->digits) {
                float scale =
                    call->k->samples_whole(row_of(call, b, r, floats), call->in, digit_limit(b->elements), floats);
                if (!piece) scales_of(b)[r] = scale;
            }
            lay_turned(call, b, r, b->groups * piece / pieces, b->groups * (piece + 1) / pieces,
                       b->digits ? floats : NULL);
        }
    }
}

/* ---- tiles ------------------------------------------------------------------------------------------------------ */

/* y += the sums of a panel, [tile columns][width] */
static void add_panel(const Batch *b, const float *sums, int64_t width, int64_t columns, float *y, int64_t tile) {
    float pieces[MOST_WIDTH][COLUMNS];
    for (int64_t c0 = 0; c0 < columns; c0 += COLUMNS) {
        int64_t count = least(COLUMNS, columns - c0);
        turn(sums + c0 * width, width, count, width, pieces[0], COLUMNS);
        for (int64_t r = 0; r < b->count; r++) {
            float *to = y + b->pairs[r].row * tile + c0, factor = b->pairs[r].factor;
            for (int64_t c = 0; c < count; c++) to[c] += factor * pieces[r][c];
        }
    }
}

/* Outputs [first, first + columns) of a batch in digits: added to y [.][tile], or y NULL: from the call's y to its out. */
static void turned_tile(const Call *call, const Batch *b, int64_t first, int64_t columns, float *y) {
    SamplePart part = {b->sample, first, first + columns, 0, b->elements};
    for (int64_t r0 = 0; r0 < b->count; r0 += TURNED_ROWS) {
        int rows = (int)least(TURNED_ROWS, b->count - r0);
        const int16_t *x[TURNED_ROWS];
        const float *from[TURNED_ROWS];
        float *to[TURNED_ROWS], factor[TURNED_ROWS];
        for (int r = 0; r < rows; r++) {
            const Pair *pair = &b->pairs[r0 + r];
            int64_t row = (call->first_row + pair->row) * call->out_columns + first;
            x[r] = (const int16_t *)(const void *)((const char *)b->x + (r0 + r) * b->each);
            to[r] = y ? y + pair->row * call->tile : (float *)(void *)call->out + row;
            from[r] = y ? to[r] : (const float *)(const void *)call->y + row;
            factor[r] = pair->factor * scales_of(b)[r0 + r];
        }
        call->k->samples_turned(&part, rows, x, factor, from, to);
    }
}

static void own_item(void *context, int64_t item, int worker) {
    const Call *call = context;
    int64_t tiles = ceil_div(call->out_columns, call->tile), first = item % tiles * call->tile;
    (void)worker;
    turned_tile(call, &call->batches[item / tiles], first, least(call->tile, call->out_columns - first), NULL);
}

static void gather_tile(const Call *call, const Batch *b, int64_t first, int64_t columns, float *y, float *sums) {
    if (b->turned) {
        turned_tile(call, b, first, columns, y);
        return;
    }
    int64_t width = b->vectors * call->k->lanes, stride = b->sample->stride;
    if (b->vectors) memset(sums, 0, (size_t)(columns * width) * 4);
    for (int64_t t = 0; t < b->elements; t += b->part_groups) {
        SamplePart part = {b->sample, first, first + columns, t, least(t + b->part_groups, b->elements)};
        int64_t g = sample_first(b->sample, t);
        if (b->vectors) {
            call->k->samples_panel(&part, 0, b->vectors, b->x + g * stride * width, sums);
            continue;
        }
        const float *x[FEW_ROWS];
        float *to[FEW_ROWS], *own[FEW_ROWS], factor[FEW_ROWS];
        for (int64_t r = 0; r < b->count; r++) {
            x[r] = b->x + r * b->each + g * b->pitch;
            own[r] = sums + r * call->tile;
            to[r] = y + b->pairs[r].row * call->tile;
            factor[r] = b->pairs[r].factor * (b->digits ? scales_of(b)[r] : 1);
        }
        call->k->samples_gather(&part, part.last_group == b->elements, b->digits, (int)b->count, x, factor, own, to);
    }
    if (b->vectors) add_panel(b, sums, width, columns, y, call->tile);
}

/* The first element of a row that a tile of columns of D touches: whole bytes of codes, and whole windows. */
static int64_t first_element(const Sample *s, int64_t first) {
    return first / (s->stride * s->window) / 4 * 4 * s->kept;
}

/* A panel's columns, that are there twice (sample_places), as one. */
static void fold_panel(float *sums, int64_t groups, int64_t stride, int64_t width) {
    for (int64_t g = 0; g < groups; g++)
        for (int64_t c = 0; c < stride; c++) {
            float *to = sums + (g * stride + c) * width;
            const float *once = sums + (2 * g * stride + c) * width, *more = once + stride * width;
            for (int64_t i = 0; i < width; i++) to[i] = once[i] + (c < stride - 1 ? more[i] : 0);
        }
}

static void scatter_tile(const Call *call, const Batch *b, int64_t first, int64_t columns, float *y, float *sums) {
    int64_t width = b->vectors * call->k->lanes, stride = b->sample->stride, pitch = b->pitch;
    int64_t t0 = first_element(b->sample, first), windows = ceil_div(first + columns, stride * b->sample->window);
    int64_t g0 = sample_first(b->sample, t0), g1 = windows * b->sample->window, t1 = windows * b->sample->kept;
    int64_t each = (g1 - g0) * (b->vectors ? 2 * stride * width : pitch);
    memset(sums, 0, (size_t)(b->vectors ? each : b->count * each) * 4);
    for (int64_t t = t0; t < t1; t += b->part_groups) {
        SamplePart part = {b->sample, 0, call->m, t, least(t + b->part_groups, t1)};
        int64_t g = sample_first(b->sample, t);
        if (b->vectors) {
            call->k->samples_panel(&part, 1, b->vectors, b->x, sums + (g - g0) * 2 * stride * width);
            continue;
        }
        const float *x[FEW_ROWS];
        float *to[FEW_ROWS];
        for (int64_t r = 0; r < b->count; r++) x[r] = b->x + r * b->each, to[r] = sums + r * each + (g - g0) * pitch;
        call->k->samples_scatter(&part, (int)b->count, x, to);
    }
    if (b->vectors) {
        fold_panel(sums, g1 - g0, stride, width);
        add_panel(b, sums + (first - g0 * stride) * width, width, columns, y, call->tile);
        return;
    }
    for (int64_t r = 0; r < b->count; r++) {
        float *to = y + b->pairs[r].row * call->tile, factor = b->pairs[r].factor;
        for (int64_t g = g0; g < g1; g++) { /* a group's columns are there twice, but for the last */
            const float *from = sums + r * each + (g - g0) * pitch;
            int64_t at = g * stride - first, begin = at < 0 ? -at : 0, end = least(stride, columns - at);
            for (int64_t c = begin; c < end; c++)
                to[at + c] += factor * (from[c] + (c < stride - 1 ? from[c + stride] : 0));
        }
    }
}

static void tile_item(void *context, int64_t item, int worker) {
    const Call *call = context;
    float *y = (float *)(void *)(call->scratch + worker * call->scratch_size);
    float *sums = y + round_up(call->rows * call->tile, 16);
    int64_t first = item * call->tile, columns = least(call->tile, call->out_columns - first);
    memset(y, 0, (size_t)(call->rows * call->tile) * 4);
    for (int64_t i = 0; i < call->batch_count; i++) {
        const Batch *b = &call->batches[i];
        if (call->transposed) scatter_tile(call, b, first, columns, y, sums);
        else gather_tile(call, b, first, columns, y, sums);
    }
    for (int64_t r = 0; r < call->rows; r++) {
        int64_t at = ((call->first_row + r) * call->out_columns + first) * size_of(call->type);
        call->k->narrow(y + r * call->tile, call->y + at, call->out + at, call->type, columns);
    }
}

/* ---- one sweep: some rows and all their samples ----------------------------------------------------------------- */

/* Whether a sample's products are of digits, whatever the rows and their number. */
static int turns(const Call *call, const Sample *sample) {
    return !call->exact && !call->transposed && in_digits(call->k, sample);
}

/* Batches of a sample's pairs; returns how many. */
static int64_t split(const Call *call, const Sample *sample, const Pair *pairs, int64_t count, Batch *to) {
    int64_t lanes = call->k->lanes, made = 0;
    for (int64_t at = 0, size; at < count; at += size, made++) {
        int64_t rest = count - at;
        int digits = turns(call, sample);
        int turned = digits && rest * lanes >= 8 * sample->stride; /* for fewer rows finding the turns takes longer */
        int vectors = rest >= 4 * lanes ? 4 : rest >= 2 * lanes ? 2 : 2 * rest > lanes ? 1 : 0;
        size = vectors ? least(rest, vectors * lanes) : rest >= 8 ? 8 : rest >= 4 ? 4 : rest >= 2 ? 2 : 1;
        if (turned) vectors = 0, size = least(rest, TURNED_ROWS);
        else if (digits) vectors = 0, size = rest >= 8 ? 8 : rest >= 4 ? 4 : rest >= 2 ? 2 : 1;
        Batch b = {.sample = sample,
                   .pairs = pairs + at,
                   .count = size,
                   .vectors = vectors,
                   .digits = digits,
                   .turned = turned,
                   .elements = sample_elements(sample, call->n),
                   .groups = ceil_div(ceil_div(call->n, sample->stride), sample->window) * sample->window,
                   .pitch = sample_pitch(sample->stride, lanes)};
        int64_t numbers = vectors ? sample->stride * vectors * lanes : b.pitch * size; /* a group, then an element */
        numbers = numbers * sample->window / sample->kept;
        int64_t unit = SEGMENT * sample->kept; /* a window's elements are of one part, whose rows are added in order */
        b.part_groups = least((vectors ? NEAR_PANEL : NEAR) / numbers, MOST_GROUPS) / unit * unit;
        if (b.part_groups < unit) b.part_groups = unit;
        b.each = round_up(call->transposed ? call->m : b.groups * b.pitch + lanes, 16);
        if (turned) b.each = laid_bytes(call->k, sample, call->n);
        to[made] = b;
    }
    return made;
}

static int64_t numbers_of(const Call *call, const Batch *b) {
    if (b->turned) return round_up(b->count * (b->each / 4 + 1), 16);
    if (!b->vectors) return b->count * b->each + (b->digits ? 16 : 0);
    return round_up((call->transposed ? call->m : b->groups * b->sample->stride) * b->vectors * call->k->lanes, 16);
}

/* Sums of a batch's tile, beside y. */
static int64_t sums_of(const Call *call, const Batch *b) {
    int64_t width = b->vectors * call->k->lanes, stride = b->sample->stride;
    int64_t window = b->sample->window; /* whole bytes of codes, both ends */
    int64_t groups = least((call->tile / (stride * window) + 6) * window, b->groups);
    if (b->turned) return 0;
    if (!call->transposed) return call->tile * (b->vectors ? width : b->count);
    return groups * (b->vectors ? 2 * stride * width : b->count * b->pitch) + call->k->lanes;
}

/* Tiles start with a block (and a byte of codes) of the largest stride, so that tasks of one stride share none. */
static int64_t tile_size(const Call *call) {
    int64_t largest = 1, few = 0, size = TILE;
    for (int64_t i = 0; i < call->batch_count; i++) {
        if (call->batches[i].sample->stride > largest) largest = call->batches[i].sample->stride;
        few |= !call->batches[i].vectors;
    }
    if (call->transposed && few) size = 4 * TILE; /* what was stored is read again late, from the cache */
    int64_t shared = call->out_columns / (2 * call->threads);
    if (call->threads > 1 && shared < size) size = shared > 64 ? shared : 64;
    return least(round_up(size, call->transposed ? 4 * largest : largest), round_up(call->out_columns, 16));
}

static int sweep(Call *call) {
    int64_t numbers = 0, elements = 0, most = 0;
    for (int64_t i = 0; i < call->batch_count; i++) {
        numbers += numbers_of(call, &call->batches[i]);
        call->own = call->own && call->batches[i].turned;
        elements += call->batches[i].count * call->batches[i].elements * call->m * (call->batches[i].turned ? 1 : WORK);
    }
    call->threads = dts_useful_threads(call->threads, elements);
    call->tile = tile_size(call);
    for (int64_t i = 0; i < call->batch_count; i++) {
        int64_t sums = sums_of(call, &call->batches[i]);
        if (sums > most) most = sums;
    }
    int64_t y = call->own ? 0 : round_up(call->rows * call->tile, 16) + most;
    call->scratch_size = round_up((y > call->in ? y : call->in) * 4, 64);
    void *memory = dts_scratch((size_t)(64 + round_up(numbers * 4, 64) + call->threads * call->scratch_size));
    if (!memory) return 1;
    float *x = memory;
    for (int64_t i = 0; i < call->batch_count; i++) {
        call->batches[i].x = x;
        x += numbers_of(call, &call->batches[i]);
    }
    call->scratch = (char *)memory + round_up(numbers * 4, 64);
    call->pieces = call->threads > call->batch_count ? call->threads : 1;
    dts_parallel(call->threads, call->batch_count * call->pieces, lay_item, call);
    int64_t tiles = ceil_div(call->out_columns, call->tile);
    if (call->own) dts_parallel(call->threads, call->batch_count * tiles, own_item, call);
    else dts_parallel(call->threads, tiles, tile_item, call);
    dts_scratch_back(memory);
    return 0;
}

int dts_add_samples(const AddSamples *a) {
    int64_t rows = a->rows, sample_count = a->sample_count, slot_count = a->slot_count;
    int64_t entries = a->entries, places = a->places;
    const Sample *samples = a->samples;
    const int64_t *starts = a->starts;
    const int32_t *slots = a->slots;
    const float *weights = a->weights;
    Call call = {.k = dts_find(a->variant),
                 .transposed = (int)a->transposed,
                 .exact = (int)a->exact,
                 .type = (int)a->type,
                 .m = a->m,
                 .n = a->n,
                 .in = a->transposed ? a->m : a->n,
                 .out_columns = a->transposed ? a->n : a->m,
                 .x = a->x,
                 .y = a->y,
                 .out = a->out};
    if (!call.k) return NO_VARIANT;
    if (!known_type(call.type) || !holds(a->x, a->x_have, rows, call.in, call.in) ||
        !holds(a->y, a->y_have, rows, call.out_columns, call.out_columns) ||
        !holds(a->out, a->out_have, rows, call.out_columns, call.out_columns) ||
        !routes(slots, a->slots_have, weights, a->weights_have, entries, places, rows) ||
        !samples_fit(samples, sample_count, starts, slot_count, slots, entries * places, a->m, a->n))
        return NO_FIT;
    if (!rows || !call.out_columns) return DONE;
    int64_t each = entries ? rows / entries : 1, most = 1;
    call.own = call.type == FLOAT32 && entries;
    for (int64_t entry = 0; entry < entries; entry++) {
        int64_t own = 0;
        for (int64_t at = entry * places; at < (entry + 1) * places; at++)
            if (slots[at] >= 0 && slots[at] < slot_count) own += starts[slots[at] + 1] - starts[slots[at]];
        if (own > most) most = own;
        call.own = call.own && own == 1;
    }
    for (int64_t i = 0; call.own && i < entries * places; i++)
        if (slots[i] >= 0 && slots[i] < slot_count && starts[slots[i]] < starts[slots[i] + 1])
            call.own = turns(&call, &samples[starts[slots[i]]]);
    int64_t step = call.own ? MOST_OWN : most < MOST_PAIRS ? MOST_PAIRS / most : 1, room = least(step, rows) * most;
    int64_t *ends = malloc((size_t)(sample_count + 1) * sizeof *ends);
    Pair *pairs = malloc((size_t)room * sizeof *pairs);
    call.batches = malloc((size_t)room * sizeof *call.batches);
    int failed = !ends || !pairs || !call.batches;
    for (int64_t first = 0; first < rows && !failed; first += step) {
        call.first_row = first, call.rows = least(step, rows - first), call.batch_count = 0;
        call.threads = a->threads > 0 ? (int)a->threads : 1;
        memset(ends, 0, (size_t)(sample_count + 1) * sizeof *ends);
        for (int pass = 0; pass < 2; pass++) { /* count the pairs of every sample, then put them beside each other */
            for (int64_t i = 0; i < call.rows * places; i++) {
                int64_t at = (first + i / places) / each * places + i % places, slot = slots[at];
                if (slot < 0 || slot >= slot_count) continue;
                for (int64_t s = starts[slot]; s < starts[slot + 1]; s++)
                    if (pass) pairs[ends[s]++] = (Pair){i / places, weights[at] * samples[s].scale};
                    else ends[s + 1]++;
            }
            for (int64_t s = 0; s < sample_count && !pass; s++) ends[s + 1] += ends[s];
        }
        for (int64_t s = 0, begin = 0; s < sample_count; begin = ends[s++])
            call.batch_count +=
                split(&call, &samples[s], pairs + begin, ends[s] - begin, call.batches + call.batch_count);
        failed = sweep(&call);
    }
    free(ends), free(pairs), free(call.batches);
    return failed;
}
