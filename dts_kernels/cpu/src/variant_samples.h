/* The inner loops of sampled elements; included by variant.c after its SIMD header.
 *
 * Few rows of x: a lane is a row of D, so a code word of each of LANES rows holds 16 groups of them, and what they meet
 * in one group of columns is a turned run of the group.  Many rows: a lane is a row of x, and an element of D is one
 * number for all of them.
 */
#include "codes.h"
#include "samples.h"

#ifdef __clang__ /* shifts by constants */
#define UNROLLED _Pragma("clang loop unroll(full)")
#else
#define UNROLLED _Pragma("GCC unroll 16")
#endif

/* bytes_of in 32 bits, on which the loops count: 64 cost a few per cent of a small product */
INLINE int group_bytes(int groups) { return (groups + 3) / 4; }

enum { SUMS = 8 }; /* chains of additions at once */

/* shifts[g] of a block's groups, from `group` on */
INLINE void sample_shifts(const Sample *s, int64_t block, int64_t group, int count, int32_t *shifts) {
    Sample own = *s; /* the compiler cannot know that shifts is not it */
    for (int g = 0; g < count; g++) shifts[g] = (int32_t)sample_shift(&own, block, group + g);
}

/* groups[t]: those of a thinned sample's elements from `first` on, the first of a window, counted from that window's; and
 * how far each is turned.  32-bit numbers throughout, so that compilers make vectors of all three loops. */
INLINE void thinned_shifts(const Sample *s, int64_t block, int64_t first, int count, int32_t *groups, int32_t *shifts) {
    uint32_t seed = sample_block(s, block), stride = (uint32_t)s->stride, window = (uint32_t)s->window;
    uint32_t log = (uint32_t)__builtin_ctz(window), turns[MOST_GROUPS];
    int kept = (int)s->kept, windows = count / kept;
    uint32_t from = (uint32_t)(first / kept);
    for (int u = 0; u < windows; u++) turns[u] = sample_mix(seed, ~((from + u) << log >> 6)) >> 26 & (window - 1);
    if (kept == 1) {
        for (int u = 0; u < windows; u++) groups[u] = (int32_t)((uint32_t)u * window + turns[u]);
    } else {
        for (int u = 0; u < windows; u++)
            for (int j = 0; j < 3; j++)
                groups[3 * u + j] = (int32_t)((uint32_t)u * window + ((j ? window >> j : 0) ^ turns[u]));
    }
    for (int t = 0; t < count; t++)
        shifts[t] = (int32_t)((sample_mix(seed, (from << log) + (uint32_t)groups[t]) >> 16) * stride >> 16);
}

/* words[k][lane]: codes of groups 16 k .. 16 k + 15 of `count` rows; other lanes stay as they are */
INLINE void sample_words(const uint8_t *codes, int64_t row_bytes, int count, int bytes, uint32_t words[][LANES]) {
    for (int lane = 0; lane < count; lane++, codes += row_bytes) {
        int k = 0;
        for (; k < bytes / 4; k++) memcpy(&words[k][lane], codes + 4 * k, 4);
        if (bytes % 4) words[k][lane] = 0;
        for (int i = 4 * k; i < bytes; i++) words[k][lane] |= (uint32_t)codes[i] << 8 * (i % 4);
    }
}

/* at[g]: where the part's turned diagonal of a block begins in what sample_pitch lays out; returns the block's last row
 * of the part, and one more */
INLINE int64_t sample_turns(const SamplePart *part, int64_t block, int groups, int64_t pitch, int32_t *at) {
    int64_t next = (block + 1) * part->sample->stride;
    if (part->sample->window > 1) {
        int32_t of[MOST_GROUPS];
        thinned_shifts(part->sample, block, part->group, groups, of, at);
        for (int g = 0; g < groups; g++) at[g] += (int32_t)(of[g] * pitch);
    } else {
        sample_shifts(part->sample, block, part->group, groups, at);
        for (int g = 0; g < groups; g++) at[g] += (int32_t)(g * pitch);
    }
    return next < part->last_row ? next : part->last_row;
}

/* The codes of as many rows from `row` on as fit the lanes, below `next`; returns how many. */
INLINE int sample_lanes(const SamplePart *part, int64_t row, int64_t next, int bytes, uint32_t words[][LANES]) {
    const Sample *s = part->sample;
    int count = next - row < LANES ? (int)(next - row) : LANES;
    sample_words(s->codes + row * s->row_bytes + part->group / 4, s->row_bytes, count, bytes, words);
    return count;
}

INLINE acc load_words(const uint32_t *words) {
    acc a;
    memcpy(&a, words, sizeof a);
    return a;
}

/* ---- few rows --------------------------------------------------------------------------------------------------- */

/* Chains `first` to first + ways - 1 of a segment, added to sum[row] in order. */
INLINE void gather_chains(int rows, int first, int ways, int groups, const uint32_t words[][LANES], const int32_t *at,
                          const float *const *x, fvec *sum) {
    fvec table = load_values(code_values), a[SUMS];
    for (int w = 0; w < ways; w++)
        for (int r = 0; r < rows; r++) a[w * rows + r] = first + w ? fset(0) : sum[r];
    int g = 0;
    for (; g + 16 <= groups; g += 16) {
        acc c = load_words(words[g / 16]);
        UNROLLED
        for (int j = 0; j < 16; j += 4)
            for (int w = 0; w < ways; w++) {
                fvec v = value(c, j + first + w, table);
                for (int r = 0; r < rows; r++)
                    a[w * rows + r] = fma4(v, fload(x[r] + at[g + j + first + w]), a[w * rows + r]);
            }
    }
    if (g < groups) {
        acc c = load_words(words[g / 16]);
        int i = 0, some = groups - g;
        for (; i + 4 <= some; i += 4)
            for (int w = 0; w < ways; w++) {
                fvec v = value(c, i + first + w, table);
                for (int r = 0; r < rows; r++)
                    a[w * rows + r] = fma4(v, fload(x[r] + at[g + i + first + w]), a[w * rows + r]);
            }
        for (; first == 0 && i < some; i++) {
            fvec v = value(c, i, table);
            for (int r = 0; r < rows; r++) a[r] = fma4(v, fload(x[r] + at[g + i]), a[r]);
        }
    }
    for (int w = 0; w < ways; w++)
        for (int r = 0; r < rows; r++) sum[r] = first + w ? fadd(sum[r], a[w * rows + r]) : a[r];
}

INLINE void gather_lanes(int rows, int groups, const uint32_t words[][LANES], const int32_t *at, const float *const *x,
                         float out[][LANES]) {
    fvec sum[SUMS];
    const float *from[SUMS];
    for (int r = 0; r < rows; r++) from[r] = x[r], sum[r] = fload(out[r]);
    for (int g = 0; g < groups; g += SEGMENT) {
        int some = groups - g < SEGMENT ? groups - g : SEGMENT;
        if (rows <= 2) gather_chains(rows, 0, 4, some, words + g / 16, at + g, from, sum);
        else if (rows == 4) {
            gather_chains(rows, 0, 2, some, words + g / 16, at + g, from, sum);
            gather_chains(rows, 2, 2, some, words + g / 16, at + g, from, sum);
        } else {
            gather_chains(rows, 0, 1, some, words + g / 16, at + g, from, sum);
            gather_chains(rows, 1, 1, some, words + g / 16, at + g, from, sum);
            gather_chains(rows, 2, 1, some, words + g / 16, at + g, from, sum);
            gather_chains(rows, 3, 1, some, words + g / 16, at + g, from, sum);
        }
    }
    for (int r = 0; r < rows; r++) fstore(out[r], sum[r]);
}

INLINE void gather_some(int rows, int groups, const uint32_t words[][LANES], const int32_t *at, const float *const *x,
                        float out[][LANES]) {
    if (rows == 8) gather_lanes(8, groups, words, at, x, out);
    else if (rows == 4) gather_lanes(4, groups, words, at, x, out);
    else if (rows == 2) gather_lanes(2, groups, words, at, x, out);
    else gather_lanes(1, groups, words, at, x, out);
}

/* The same of whole numbers below 2^15, which float32 adds exactly for so many groups; out has their sums as int32. */
INLINE void gather_digits(int rows, int groups, const uint32_t words[][LANES], const int32_t *at, const float *const *x,
                          float out[][LANES]) {
    enum { EXACT = 4 * SEGMENT };
    for (int g = 0; g < groups; g += EXACT) {
        float some[FEW_ROWS][LANES];
        memset(some, 0, sizeof some);
        gather_some(rows, groups - g < EXACT ? groups - g : EXACT, words + g / 16, at + g, x, some);
        for (int r = 0; r < rows; r++) {
            int32_t whole[LANES];
            memcpy(whole, out[r], sizeof whole);
            for (int i = 0; i < LANES; i++) whole[i] += (int32_t)some[r][i];
            memcpy(out[r], whole, sizeof whole);
        }
    }
}

/* sums[r][row - first row] += D x[r], from zero at group 0; the last part: y[r][row - first row] += factor[r] * sums
 * instead.  x as sample_pitch says, from the part's first group on; digits: as samples_whole has it, and sums are the
 * integers that samples_turned adds. */
static void samples_gather(const SamplePart *part, int last, int digits, int rows, const float *const *x,
                           const float *factor, float *const *sums, float *const *y) {
    const Sample *s = part->sample;
    int groups = (int)(part->last_group - part->group), bytes = group_bytes(groups);
    int64_t pitch = sample_pitch(s->stride, LANES), next;
    int32_t at[MOST_GROUPS];
    uint32_t words[MOST_GROUPS / 16][LANES] = {{0}};
    const float *from[FEW_ROWS];
    float own[FEW_ROWS][LANES];
    for (int64_t row = part->row; row < part->last_row; row = next) {
        int64_t block = row / s->stride;
        next = sample_turns(part, block, groups, pitch, at);
        for (; row < next; row += LANES) {
            int count = sample_lanes(part, row, next, bytes, words);
            int64_t to = row - part->row;
            for (int r = 0; r < rows; r++) {
                from[r] = x[r] + (row - block * s->stride);
                fstore(own[r], fset(0));
                for (int i = 0; part->group && i < count; i++) own[r][i] = sums[r][to + i];
            }
            if (digits) gather_digits(rows, groups, words, at, from, own);
            else gather_some(rows, groups, words, at, from, own);
            for (int r = 0; r < rows; r++)
                if (last && digits) {
                    int32_t whole[LANES];
                    memcpy(whole, own[r], sizeof whole);
                    for (int i = 0; i < count; i++) y[r][to + i] += factor[r] * (float)whole[i];
                } else if (last)
                    for (int i = 0; i < count; i++) y[r][to + i] += factor[r] * own[r][i];
                else
                    for (int i = 0; i < count; i++) sums[r][to + i] = own[r][i];
        }
    }
}

INLINE void scatter_lanes(int rows, int groups, const uint32_t words[][LANES], const int32_t *at,
                          const float x[][LANES], float *const *out) {
    fvec table = load_values(code_values), own[FEW_ROWS];
    float *to[FEW_ROWS];
    for (int r = 0; r < rows; r++) own[r] = fload(x[r]), to[r] = out[r];
    for (int g = 0; g < groups; g += 16) {
        acc w = load_words(words[g / 16]);
        int some = groups - g < 16 ? groups - g : 16;
        if (some == 16) {
            UNROLLED
            for (int i = 0; i < 16; i++) {
                fvec v = value(w, i, table);
                for (int r = 0; r < rows; r++) {
                    float *p = to[r] + at[g + i];
                    fstore(p, fma4(v, own[r], fload(p)));
                }
            }
            continue;
        }
        for (int i = 0; i < some; i++) {
            fvec v = value(w, i, table);
            for (int r = 0; r < rows; r++) {
                float *p = to[r] + at[g + i];
                fstore(p, fma4(v, own[r], fload(p)));
            }
        }
    }
}

/* out[r] += x[r] D, as sample_pitch says, from the part's first group on; x from the part's first row on, which starts
 * a block */
static void samples_scatter(const SamplePart *part, int rows, const float *const *x, float *const *out) {
    const Sample *s = part->sample;
    int groups = (int)(part->last_group - part->group), bytes = group_bytes(groups);
    int64_t pitch = sample_pitch(s->stride, LANES), next;
    int32_t at[MOST_GROUPS];
    uint32_t words[MOST_GROUPS / 16][LANES] = {{0}};
    float *to[8], own[FEW_ROWS][LANES];
    for (int64_t row = part->row; row < part->last_row; row = next) {
        int64_t block = row / s->stride;
        next = sample_turns(part, block, groups, pitch, at);
        for (; row < next; row += LANES) {
            int count = sample_lanes(part, row, next, bytes, words);
            memset(own, 0, sizeof own); /* lanes beyond the block's rows add zeros */
            for (int r = 0; r < rows; r++) {
                memcpy(own[r], x[r] + (row - part->row), (size_t)count * 4);
                to[r] = out[r] + (row - block * s->stride);
            }
            if (rows == 8) scatter_lanes(8, groups, words, at, own, to);
            else if (rows == 4) scatter_lanes(4, groups, words, at, own, to);
            else if (rows == 2) scatter_lanes(2, groups, words, at, own, to);
            else scatter_lanes(1, groups, words, at, own, to);
        }
    }
}

/* ---- many rows -------------------------------------------------------------------------------------------------- */

/* values[plane][j] of group 4 j + plane of one row of codes */
INLINE void sample_row_values(const uint8_t *codes, int bytes, float values[4][MOST_GROUPS / 4]) {
    fvec table = load_values(code_values);
    for (int j = 0; j < bytes; j += LANES) {
        acc c = bytes - j < LANES ? codes_part(codes + j, bytes - j) : load_codes(codes + j);
        for (int plane = 0; plane < 4; plane++) fstore(values[plane] + j, value(c, plane, table));
    }
}

/* at[g]: where the element of group g (of a thinned sample: of[g]) of a block's row `place` is, a panel's columns `width`
 * numbers apart.  Scattered, a group's columns are there twice and turned ones in the second, as few rows have them: the
 * same sums. */
INLINE void sample_places(int32_t stride, int32_t place, int groups, const int32_t *of, const int32_t *shifts,
                          int scattered, int width, int32_t *at) {
    for (int32_t g = 0; g < groups; g++) {
        int32_t turned = place + shifts[g], group = of ? of[g] : g;
        at[g] = scattered ? (2 * group * stride + turned) * width
                          : (group * stride + turned - (turned >= stride ? stride : 0)) * width;
    }
}

INLINE void panel_chains(int vectors, int first, int ways, int groups, float values[4][MOST_GROUPS / 4], int from,
                         const int32_t *at, const float *x, fvec *sum) {
    fvec a[SUMS];
    for (int w = 0; w < ways; w++)
        for (int v = 0; v < vectors; v++) a[w * vectors + v] = first + w ? fset(0) : sum[v];
    for (int j = from / 4; j < (from + groups) / 4; j++)
        for (int w = 0; w < ways; w++) {
            fvec value = fset(values[first + w][j]);
            const float *p = x + at[4 * j + first + w];
            for (int v = 0; v < vectors; v++)
                a[w * vectors + v] = fma4(value, fload(p + v * LANES), a[w * vectors + v]);
        }
    for (int g = (from + groups) / 4 * 4; first == 0 && g < from + groups; g++) /* codes beyond mean nothing */
        for (int v = 0; v < vectors; v++) a[v] = fma4(fset(values[g % 4][g / 4]), fload(x + at[g] + v * LANES), a[v]);
    for (int w = 0; w < ways; w++)
        for (int v = 0; v < vectors; v++) sum[v] = first + w ? fadd(sum[v], a[w * vectors + v]) : a[v];
}

INLINE void gather_row(int vectors, int groups, float values[4][MOST_GROUPS / 4], const int32_t *at, const float *x,
                       float *sums) {
    fvec sum[4];
    for (int v = 0; v < vectors; v++) sum[v] = fload(sums + v * LANES);
    for (int g = 0; g < groups; g += SEGMENT) {
        int some = groups - g < SEGMENT ? groups - g : SEGMENT;
        if (vectors <= 2) panel_chains(vectors, 0, 4, some, values, g, at, x, sum);
        else {
            panel_chains(vectors, 0, 2, some, values, g, at, x, sum);
            panel_chains(vectors, 2, 2, some, values, g, at, x, sum);
        }
    }
    for (int v = 0; v < vectors; v++) fstore(sums + v * LANES, sum[v]);
}

INLINE void scatter_row(int vectors, int groups, float values[4][MOST_GROUPS / 4], const int32_t *at, const float *x,
                        float *out) {
    fvec own[4];
    for (int w = 0; w < vectors; w++) own[w] = fload(x + w * LANES);
    for (int j = 0; j < groups / 4; j++)
        for (int plane = 0; plane < 4; plane++) {
            fvec v = fset(values[plane][j]);
            float *p = out + at[4 * j + plane];
            for (int w = 0; w < vectors; w++) fstore(p + w * LANES, fma4(v, own[w], fload(p + w * LANES)));
        }
    for (int g = groups / 4 * 4; g < groups; g++)
        for (int w = 0; w < vectors; w++) {
            float *p = out + at[g] + w * LANES;
            fstore(p, fma4(fset(values[g % 4][g / 4]), own[w], fload(p)));
        }
}

/* sums[row - first row][.] += D x of a panel of `vectors` registers of rows: x [columns from the first group on][.]; or
 * scattered: sums [2 columns a column from the first group on][.] += x [row - first row][.] D, see sample_places */
static void samples_panel(const SamplePart *part, int scattered, int vectors, const float *x, float *sums) {
    const Sample *s = part->sample;
    int groups = (int)(part->last_group - part->group), bytes = group_bytes(groups), width = vectors * LANES;
    int32_t shifts[MOST_GROUPS], at[MOST_GROUPS], of[MOST_GROUPS];
    float values[4][MOST_GROUPS / 4];
    int64_t block = part->row / s->stride, place = part->row % s->stride;
    int thinned = s->window > 1;
    for (int64_t row = part->row; row < part->last_row; row++, place++) {
        if (place == s->stride) place = 0, block++;
        if (place == 0 || row == part->row) {
            if (thinned) thinned_shifts(s, block, part->group, groups, of, shifts);
            else sample_shifts(s, block, part->group, groups, shifts);
        }
        if (thinned) sample_places((int32_t)s->stride, (int32_t)place, groups, of, shifts, scattered, width, at);
        else sample_places((int32_t)s->stride, (int32_t)place, groups, NULL, shifts, scattered, width, at);
        sample_row_values(s->codes + row * s->row_bytes + part->group / 4, bytes, values);
        int64_t own = (row - part->row) * width;
        if (scattered) {
            if (vectors == 4) scatter_row(4, groups, values, at, x + own, sums);
            else if (vectors == 2) scatter_row(2, groups, values, at, x + own, sums);
            else scatter_row(1, groups, values, at, x + own, sums);
        } else {
            if (vectors == 4) gather_row(4, groups, values, at, x, sums + own);
            else if (vectors == 2) gather_row(2, groups, values, at, x, sums + own);
            else gather_row(1, groups, values, at, x, sums + own);
        }
    }
}

/* ---- rows of D -------------------------------------------------------------------------------------------------- */

static void samples_row(const Sample *s, int64_t id, int64_t first, int64_t last, float factor, int64_t n, float *row) {
    int groups = (int)(last - first);
    int32_t shifts[MOST_GROUPS], at[MOST_GROUPS], of[MOST_GROUPS];
    float values[4][MOST_GROUPS / 4];
    int64_t block = id / s->stride, from = sample_first(s, first) * s->stride;
    int thinned = s->window > 1;
    if (thinned) thinned_shifts(s, block, first, groups, of, shifts);
    else sample_shifts(s, block, first, groups, shifts);
    sample_places((int32_t)s->stride, (int32_t)(id % s->stride), groups, thinned ? of : NULL, shifts, 0, 1, at);
    sample_row_values(s->codes + id * s->row_bytes + first / 4, group_bytes(groups), values);
    row += from;
    int g = 0, most = (thinned ? groups / (int)s->kept * (int)s->window : groups) * (int)s->stride; /* columns */
    for (; g + 4 <= groups && from + most <= n; g += 4)
        for (int i = 0; i < 4; i++) row[at[g + i]] += factor * values[i][g / 4];
    for (; g < groups; g++) /* some may be columns that do not exist */
        if (from + at[g] < n) row[at[g]] += factor * values[g % 4][g / 4];
}
