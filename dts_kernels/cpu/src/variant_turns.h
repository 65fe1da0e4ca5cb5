/* Products of x's digits with sampled elements of small strides; included by variant.c after variant_samples.h.
 *
 * A lane is a row of D, a register an element of each of two groups.  What they meet are two of the groups' columns of x,
 * 16 bits each, and a shuffle of a line of x puts them there: a line serves LANES rows of D, and a product is the shuffle
 * and one instruction for 2 LANES elements.  Where a row's elements are (its turns) and what they are is found once for
 * all rows of x.  Sums are exact integers, so their order shows in nothing.
 *
 * TURNED_BYTES (AVX2, whose shuffle sees 16 bytes): a line has the upper or the lower bytes of two groups, a register the
 * elements of 2 LANES rows, 16 bits each, and for both digits a product is two shuffles and two instructions each.
 */
#ifdef TURNS
enum { TURN_PAIRS = 64, TURN_ROWS = LANES == 16 ? 8 : 4 }; /* pairs of groups at a time; rows of x in registers */

typedef uint32_t words __attribute__((vector_size(4 * LANES)));
typedef uint16_t halves __attribute__((vector_size(4 * LANES))); /* of two groups each */

typedef struct {
    vec columns[TURN_PAIRS], values[TURN_PAIRS];
#ifdef TURNED_BYTES
    acc offset[2]; /* of tiles that were joined: x is 2^15 too large */
#endif
} Turns;

/* sample_mix */
INLINE words mixed(words h) {
    h ^= h >> 16;
    h *= 0x85EBCA6Bu;
    h ^= h >> 13;
    h *= 0xC2B2AE35u;
    return h ^ h >> 16;
}

/* Pairs of groups from `group` on of the rows [row, row + count) of D, count at most LANES.  A column is TURN_UNIT times
 * its number in all of this, so that one addition makes of it what a line is shuffled by. */
static __attribute__((noinline)) void sample_turns_of(const Sample *s, int pitch, int64_t row, int count, int64_t group,
                                                      int groups, Turns *turns) {
    const uint32_t step = 0x85EBCA77u, unit = TURN_UNIT, both = 0x00010001;
    uint32_t codes[2 * TURN_PAIRS / 16][LANES] = {{0}}, stride = (uint32_t)s->stride;
    int64_t first = row / s->stride;
    int blocks = 1, together = LANES; /* blocks of rows, a power of two, and pairs of groups of a register of shifts */
    while (blocks <= (row + LANES - 1) / s->stride - first) blocks *= 2, together /= 2;
    words places = {0}, of = {0}, seeds = {0}, shifts = {0}, lane = {0}, begin[MOST_LINE_PAIRS];
    for (int i = 0; i < LANES; i++) {
        int64_t block = (row + i) / s->stride;
        places[i] = both * unit * (uint32_t)(row + i - block * s->stride);
        of[i] = (uint32_t)((block - first) * together);
        seeds[i] = sample_block(s, first + i / together) + step * (uint32_t)(group + 2 * (i % together));
    }
    for (int i = 0; i < line_pairs(pitch); i++) /* of a pair's two groups in a line of x */
        begin[i] = (words){0} + TURN_FIRST + unit * (both * (uint32_t)(2 * i * pitch) + ((uint32_t)pitch << 16));
    const halves across = (halves){0} + (uint16_t)stride, whole = (halves){0} + (uint16_t)(unit * stride);
    sample_words(s->codes + row * s->row_bytes + group / 4, s->row_bytes, count, group_bytes(groups), codes);
    int pairs = (groups + 1) / 2, p = 0;
    for (; p < pairs; p++) {
        if (p % together == 0) { /* sample_shift of two groups a lane */
            words even = seeds + step * (uint32_t)(2 * p), odd = even + step;
            even = mixed(even) >> 16 | (mixed(odd) & 0xffff0000u);
            shifts = (words)((halves)high_products((acc)even, (acc)across) * (uint16_t)unit);
            lane = of;
        }
        halves column = (halves)(places + (words)permute_lanes((acc)shifts, (acc)lane));
        column = (halves)smaller((acc)column, (acc)(column - whole)); /* without a sign: modulo stride */
        lane += 1;
        turns->columns[p] = turn_columns((vec)((words)column + begin[p % line_pairs(pitch)]));
        turns->values[p] = pair_values((vec)((words)load_words(codes[p / 8]) >> (uint32_t)(4 * (p % 8))));
    }
    for (; p % line_pairs(pitch); p++) /* the rest of a line adds nothing */
        turns->columns[p] = (vec)zero(), turns->values[p] = (vec)zero();
}

#ifdef TURNED_BYTES
enum { TURN_SUMS = 16 }; /* pairs whose products 16 bits hold: 2 * 4 * 255 each */

/* The turns of two tiles of D as those of 2 LANES rows, in the first's place. */
static void join_turns(Turns turns[2], int pairs) {
    const vec once = (vec)((words){0} + 0x01010101);
    acc sum = zero();
    for (int p = 0; p < pairs; p++) {
        turns[0].columns[p] = join_tiles(turns[0].columns[p], turns[1].columns[p]);
        turns[0].values[p] = byte_values(join_tiles(turns[0].values[p], turns[1].values[p]));
        sum = part_dot(sum, once, turns[0].values[p]);
    }
    for (int t = 0; t < 2; t++) turns[0].offset[t] = (acc)((words){0} - ((words)both_digits(t, zero(), sum) << 15));
}

/* sums[tile][r] (from_zero: 0) + the products of `rows` rows of x with `pairs` pairs of two joined tiles of D. */
INLINE void turned_rows(int rows, int tiles, int pitch, int pairs, const Turns *turns, const int16_t *const *x,
                        int64_t at, uint32_t (*sums)[TURNED_ROWS][LANES], int from_zero) {
    (void)tiles;
    for (int first = 0, last; first < pairs; first = last) {
        acc high[TURN_ROWS], low[TURN_ROWS];
        last = pairs - first < TURN_SUMS ? pairs : first + TURN_SUMS;
        for (int r = 0; r < rows; r++) high[r] = low[r] = zero();
        for (int p = first; p < last; p++) {
            vec columns = turns->columns[p], values = turns->values[p];
            for (int r = 0; r < rows; r++) {
                const uint8_t *line = (const uint8_t *)(x[r] + (at + p) * 2 * pitch);
                high[r] = part_dot(high[r], turn_bytes(columns, load_line(line)), values);
                low[r] = part_dot(low[r], turn_bytes(columns, load_line(line + 2 * pitch)), values);
            }
        }
        for (int t = 0; t < 2; t++)
            for (int r = 0; r < rows; r++) {
                words sum = (words)both_digits(t, high[r], low[r]);
                if (!first) sum += (words)turns->offset[t];
                if (first || !from_zero) sum += (words)load_words(sums[t][r]);
                memcpy(sums[t][r], &sum, sizeof sum);
            }
    }
}
#else
/* sums[tile][r] (from_zero: 0) + the products of `rows` rows of x with `pairs` pairs of `tiles` (1 or 2) tiles of D. */
INLINE void turned_rows(int rows, int tiles, int pitch, int pairs, const Turns *turns, const int16_t *const *x,
                        int64_t at, uint32_t (*sums)[TURNED_ROWS][LANES], int from_zero) {
    acc a[2][TURN_ROWS];
    for (int t = 0; t < tiles; t++)
        for (int r = 0; r < rows; r++) a[t][r] = from_zero ? zero() : (acc)load_words(sums[t][r]);
    for (int p = 0; p < pairs; p += line_pairs(pitch)) {
        vec line[TURN_ROWS];
        for (int r = 0; r < rows; r++) line[r] = load_line(x[r] + (at + p) * 2 * pitch);
        for (int i = 0; i < line_pairs(pitch); i++)
            for (int t = 0; t < tiles; t++) {
                vec columns = turns[t].columns[p + i], values = turns[t].values[p + i];
                for (int r = 0; r < rows; r++) a[t][r] = dot_pairs(a[t][r], turn_pairs(columns, line[r]), values);
            }
    }
    for (int t = 0; t < tiles; t++)
        for (int r = 0; r < rows; r++) memcpy(sums[t][r], &a[t][r], sizeof a[t][r]);
}
#endif

typedef struct { /* where the sums of two tiles go, behind the last of their groups */
    const float *factor, *const *y;
    float *const *out;
    int64_t at;
    int count[2];
} TurnedOut;

/* What is read and written of row r: often beyond L2, and no run. */
INLINE void fetch_turned(const TurnedOut *end, int tiles, int r) {
    for (int64_t at = end->at; at < end->at + tiles * LANES; at += 16) {
        __builtin_prefetch(end->out[r] + at, 1);
        if (end->y[r] != end->out[r]) __builtin_prefetch(end->y[r] + at, 0);
    }
}

/* out = y + factor * sums of row r */
INLINE void finish_turned(const TurnedOut *end, int tiles, int r, uint32_t (*sums)[TURNED_ROWS][LANES]) {
    for (int t = 0; t < tiles; t++) {
        fvec sum = fadd(fset(0), fmul(to_float((acc)load_words(sums[t][r]), 0), fset(end->factor[r]))); /* no -0 */
        const float *y = end->y[r] + end->at + t * LANES;
        float *out = end->out[r] + end->at + t * LANES, all[LANES];
        if (end->count[t] == LANES) {
            fstore(out, fadd(fload(y), sum));
            continue;
        }
        fstore(all, sum);
        for (int i = 0; i < end->count[t]; i++) out[i] = y[i] + all[i];
    }
}

INLINE void turned_some(int tiles, int pitch, int pairs, const Turns *turns, int rows, const int16_t *const *x,
                        int64_t at, uint32_t (*sums)[TURNED_ROWS][LANES], int from_zero, const TurnedOut *end) {
    int r = 0;
    for (; r + TURN_ROWS <= rows; r += TURN_ROWS) {
        for (int f = r; end && f < r + TURN_ROWS; f++) fetch_turned(end, tiles, f);
        turned_rows(TURN_ROWS, tiles, pitch, pairs, turns, x + r, at, (void *)sums[0][r], from_zero);
        for (int f = r; end && f < r + TURN_ROWS; f++) finish_turned(end, tiles, f, sums);
    }
    for (; r < rows; r++) {
        turned_rows(1, tiles, pitch, pairs, turns, x + r, at, (void *)sums[0][r], from_zero);
        if (end) finish_turned(end, tiles, r, sums);
    }
}

INLINE void turned_tiles(int tiles, int pitch, int pairs, const Turns *turns, int rows, const int16_t *const *x,
                         int64_t at, uint32_t (*sums)[TURNED_ROWS][LANES], int from_zero, const TurnedOut *end) {
#if TURNS >= 16 /* a pitch that is known unrolls the loops */
    if (pitch == 4) turned_some(tiles, 4, pairs, turns, rows, x, at, sums, from_zero, end);
    else if (pitch == 8) turned_some(tiles, 8, pairs, turns, rows, x, at, sums, from_zero, end);
    else turned_some(tiles, 16, pairs, turns, rows, x, at, sums, from_zero, end);
#else
    (void)pitch;
    turned_some(tiles, TURN_PITCH, pairs, turns, rows, x, at, sums, from_zero, end);
#endif
}

/* out[r][row - first row] = y[r] + factor[r] * D x[r] for the part's rows of D and all their elements, at most
 * TURNED_ROWS rows of x; those as samples_lay has them, and y may be out. */
static void samples_turned(const SamplePart *part, int rows, const int16_t *const *x, const float *factor,
                           const float *const *y, float *const *out) {
    const Sample *s = part->sample;
    Turns turns[2];
    uint32_t sums[2][TURNED_ROWS][LANES];
    int pitch = (int)turned_pitch(s->stride, TURN_PITCH);
    for (int64_t row = part->row; row < part->last_row; row += 2 * LANES) {
        int64_t left = part->last_row - row;
        int tiles = left > LANES ? 2 : 1;
        TurnedOut end = {factor, y, out, row - part->row, {(int)least(left, LANES), (int)least(left - LANES, LANES)}};
        for (int64_t g = part->group; g < part->last_group; g += 2 * TURN_PAIRS) {
            int groups = part->last_group - g < 2 * TURN_PAIRS ? (int)(part->last_group - g) : 2 * TURN_PAIRS;
            int pairs = (groups + 1) / 2, begins = g == part->group;
            const TurnedOut *last = g + groups == part->last_group ? &end : NULL;
            for (int t = 0; t < tiles; t++)
                sample_turns_of(s, pitch, row + t * LANES, end.count[t], g, groups, &turns[t]);
#ifdef TURNED_BYTES
            if (tiles == 1) memset(&turns[1], 0, sizeof turns[1]);
            join_turns(turns, pairs);
#endif
            if (tiles == 2) turned_tiles(2, pitch, pairs, turns, rows, x, g / 2, sums, begins, last);
            else turned_tiles(1, pitch, pairs, turns, rows, x, g / 2, sums, begins, last);
        }
    }
}

/* x [count] as 16-bit numbers in groups `turned_pitch` apart, zeros where there is no column; returns their scale.  What
 * is between a group's columns and the next one's is any numbers: no turn leads there. */
static float samples_lay(const float *x, int64_t count, int64_t stride, int limit, int16_t *out) {
    enum { PIECE = 2048 };
    int16_t piece[PIECE + 16];
    int64_t pitch = turned_pitch(stride, TURN_PITCH), most = PIECE / (2 * stride) * (2 * stride);
    int64_t columns = round_up(ceil_div(count, stride), 2) * stride;
    Digits digits;
    float inverse = start_digits(largest_of(x, count), limit, &digits);
    for (int64_t first = 0; first < columns; first += most) {
        int64_t some = least(most, columns - first), own = least(some, count - first);
#ifdef TURNED_BYTES
        int16_t *to = piece;
#else
        int16_t *to = pitch == stride ? out + first : piece;
#endif
        if (own < 0 || inverse == 0) own = 0;
        ELEMENTWISE
        for (int64_t i = 0; i < own; i++) to[i] = (int16_t)to_integer(x[first + i] * inverse);
        memset(to + own, 0, (size_t)(some - own) * 2);
        if (to != piece) continue;
        memset(piece + some, 0, (size_t)(pitch - stride) * 2);
        int16_t *group = out + first / stride * pitch;
#ifdef TURNED_BYTES
        for (int64_t c = 0; c < some; c += 2 * stride, group += 16)
            lay_pair(piece + c, piece + c + stride, (uint8_t *)group);
#else
        if (pitch == 8)
            for (int64_t c = 0; c < some; c += stride, group += 8) memcpy(group, piece + c, 16);
        else
            for (int64_t c = 0; c < some; c += stride, group += pitch) memcpy(group, piece + c, (size_t)pitch * 2);
#endif
    }
    return digits.scale;
}

/* The same numbers as float32, as they lie; out may be x. */
static float samples_whole(const float *x, int64_t count, int limit, float *out) {
    Digits digits;
    float inverse = start_digits(largest_of(x, count), limit, &digits);
    if (inverse == 0) memset(out, 0, (size_t)count * 4);
    else {
        ELEMENTWISE
        for (int64_t i = 0; i < count; i++) out[i] = (float)to_integer(x[i] * inverse);
    }
    return digits.scale;
}
#else
#define TURNS 0
#define TURN_PITCH 0
#define samples_whole NULL
#define samples_turned NULL
#define samples_lay NULL
#endif
