/* Products of x's digits with sampled elements of small strides; included by variant.c after variant_samples.h.
 *
 * A lane is a row of D, a register an element of each of two groups.  What they meet are two of the groups' columns of x,
 * 16 bits each, and a shuffle of a line of x puts them there: a line serves LANES rows of D, and a product is the shuffle
 * and one instruction (AVX2: two) for 2 LANES elements.  Where a row's elements are (its turns) and what they are is
 * found once for all rows of x.  Sums are exact integers, so their order shows in nothing.
 */
#ifdef TURNS
enum { TURN_PAIRS = 64, TURN_ROWS = LANES == 16 ? 8 : 3 }; /* pairs of groups at a time; rows of x in registers */

typedef uint32_t words __attribute__((vector_size(4 * LANES)));

typedef struct {
    vec columns[TURN_PAIRS], values[TURN_PAIRS];
} Turns;

/* Pairs of groups from `group` on of the rows [row, row + count) of D, count at most LANES. */
static __attribute__((noinline)) void sample_turns_of(const Sample *s, int pitch, int64_t row, int count, int64_t group,
                                                      int groups, Turns *turns) {
    uint32_t codes[2 * TURN_PAIRS / 16][LANES] = {{0}}, stride = (uint32_t)s->stride;
    int64_t first = row / s->stride;
    int blocks = 1, together = LANES; /* blocks of rows, a power of two, and groups of a register of hashes */
    while (blocks <= (row + LANES - 1) / s->stride - first) blocks *= 2, together /= 2;
    words places = {0}, of = {0}, seeds = {0}, ones = {0};
    ones += 1;
    for (int lane = 0; lane < LANES; lane++) {
        int64_t block = (row + lane) / s->stride;
        places[lane] = (uint32_t)(row + lane - block * s->stride);
        of[lane] = (uint32_t)((block - first) * together);
        seeds[lane] = sample_block(s, first + lane / together) + 0x85EBCA77u * (uint32_t)(group + lane % together);
    }
    sample_words(s->codes + row * s->row_bytes + group / 4, s->row_bytes, count, group_bytes(groups), codes);
    words h = seeds;
    for (int g = 0; g < groups; g += 2) {
        words turned[2];
        for (int i = 0; i < 2; i++) {
            if ((g + i) % together == 0) { /* sample_shift */
                h = seeds + 0x85EBCA77u * (uint32_t)(g + i);
                h ^= h >> 16;
                h *= 0x85EBCA6Bu;
                h ^= h >> 13;
                h *= 0xC2B2AE35u;
                h = ((h ^ h >> 16) >> 16) * stride >> 16;
            }
            words column = places + (words)permute_lanes((acc)h, (acc)(of + (uint32_t)((g + i) % together)));
            turned[i] = (words)smaller((acc)column, (acc)(column - stride * ones)); /* without a sign: modulo stride */
        }
        turns->columns[g / 2] = turn_columns(pitch, (vec)(turned[0] | turned[1] << 16), g / 2 % line_pairs(pitch));
        turns->values[g / 2] = pair_values((vec)((words)load_words(codes[g / 16]) >> (uint32_t)(2 * (g % 16))));
    }
    for (int p = (groups + 1) / 2; p % line_pairs(pitch); p++) /* the rest of a line adds nothing */
        turns->columns[p] = (vec)zero(), turns->values[p] = (vec)zero();
}

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

INLINE void turned_some(int tiles, int pitch, int pairs, const Turns *turns, int rows, const int16_t *const *x,
                        int64_t at, uint32_t (*sums)[TURNED_ROWS][LANES], int from_zero) {
    int r = 0;
    for (; r + TURN_ROWS <= rows; r += TURN_ROWS)
        turned_rows(TURN_ROWS, tiles, pitch, pairs, turns, x + r, at, (void *)sums[0][r], from_zero);
    for (; r < rows; r++) turned_rows(1, tiles, pitch, pairs, turns, x + r, at, (void *)sums[0][r], from_zero);
}

INLINE void turned_tiles(int tiles, int pitch, int pairs, const Turns *turns, int rows, const int16_t *const *x,
                         int64_t at, uint32_t (*sums)[TURNED_ROWS][LANES], int from_zero) {
    /* a pitch that is known unrolls the loops */
    if (pitch == 4) turned_some(tiles, 4, pairs, turns, rows, x, at, sums, from_zero);
#if TURNS >= 16
    else if (pitch == 8) turned_some(tiles, 8, pairs, turns, rows, x, at, sums, from_zero);
    else turned_some(tiles, 16, pairs, turns, rows, x, at, sums, from_zero);
#endif
}

INLINE void finish_turned(int rows, int count, uint32_t (*sums)[LANES], const float *factor, int64_t at,
                          const float *const *y, float *const *out) {
    for (int r = 0; r < rows; r++) {
        fvec sum = fadd(fset(0), fmul(to_float((acc)load_words(sums[r]), 0), fset(factor[r]))); /* no -0 */
        float all[LANES];
        if (count == LANES) {
            fstore(out[r] + at, fadd(fload(y[r] + at), sum));
            continue;
        }
        fstore(all, sum);
        for (int i = 0; i < count; i++) out[r][at + i] = y[r][at + i] + all[i];
    }
}

/* out[r][row - first row] = y[r] + factor[r] * D x[r] for the part's rows of D and all their elements, at most
 * TURNED_ROWS rows of x; those as samples_lay has them, and y may be out. */
static void samples_turned(const SamplePart *part, int rows, const int16_t *const *x, const float *factor,
                           const float *const *y, float *const *out) {
    const Sample *s = part->sample;
    Turns turns[2];
    uint32_t sums[2][TURNED_ROWS][LANES];
    int pitch = (int)turned_pitch(s->stride);
    for (int64_t row = part->row; row < part->last_row; row += 2 * LANES) {
        int64_t left = part->last_row - row;
        int count[2] = {left < LANES ? (int)left : LANES, left < 2 * LANES ? (int)(left - LANES) : LANES};
        int tiles = count[1] > 0 ? 2 : 1;
        for (int64_t g = part->group; g < part->last_group; g += 2 * TURN_PAIRS) {
            int groups = part->last_group - g < 2 * TURN_PAIRS ? (int)(part->last_group - g) : 2 * TURN_PAIRS;
            int pairs = (groups + 1) / 2, begins = g == part->group;
            for (int t = 0; t < tiles; t++) sample_turns_of(s, pitch, row + t * LANES, count[t], g, groups, &turns[t]);
            if (tiles == 2) turned_tiles(2, pitch, pairs, turns, rows, x, g / 2, sums, begins);
            else turned_tiles(1, pitch, pairs, turns, rows, x, g / 2, sums, begins);
        }
        for (int t = 0; t < tiles; t++)
            finish_turned(rows, count[t], sums[t], factor, row - part->row + t * LANES, y, out);
    }
}

/* x [count] as 16-bit numbers in groups `turned_pitch` apart, zeros where there is no column; returns their scale.  What
 * is between a group's columns and the next one's is any numbers: no turn leads there. */
static float samples_lay(const float *x, int64_t count, int64_t stride, int limit, int16_t *out) {
    enum { PIECE = 2048 };
    int16_t piece[PIECE + 16];
    int64_t pitch = turned_pitch(stride), most = PIECE / stride * stride;
    int64_t columns = round_up(ceil_div(count, stride), 2) * stride;
    Digits digits;
    float inverse = start_digits(largest_of(x, count), limit, &digits);
    for (int64_t first = 0; first < columns; first += most) {
        int64_t some = least(most, columns - first), own = least(some, count - first);
        int16_t *to = pitch == stride ? out + first : piece;
        if (own < 0 || inverse == 0) own = 0;
        ELEMENTWISE
        for (int64_t i = 0; i < own; i++) to[i] = (int16_t)to_integer(x[first + i] * inverse);
        memset(to + own, 0, (size_t)(some - own) * 2);
        if (to != piece) continue;
        memset(piece + some, 0, (size_t)(pitch - stride) * 2);
        int16_t *group = out + first / stride * pitch;
        if (pitch == 8)
            for (int64_t c = 0; c < some; c += stride, group += 8) memcpy(group, piece + c, 16);
        else
            for (int64_t c = 0; c < some; c += stride, group += pitch) memcpy(group, piece + c, (size_t)pitch * 2);
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
#define samples_whole NULL
#define samples_turned NULL
#define samples_lay NULL
#endif
