/* Sampled elements of a matrix D [m, n] (samples.py has their definition) and products with parts of it. */
#ifndef DTS_SAMPLES_H
#define DTS_SAMPLES_H
#include "codes.h"
#include "sizes.h"

typedef struct {
    const uint8_t *codes; /* four elements a byte, any alignment */
    int64_t row_bytes;    /* from row to row */
    int64_t stride;
    uint32_t seed;
    float scale;
    int64_t rows, bytes;  /* that there are, and bytes of a row */
    int64_t kept, window; /* groups of so many that have an element: 1 and 1 where all have */
} Sample;

/* A row of x has the same sums, bit for bit, whatever else is in the batch.  So the groups of a row of D are added in
 * one order by every loop: groups 4 j + p of a segment in chain p, then  sum = ((c0 + c1) + c2) + c3,  the sum being
 * chain 0 of the next segment; groups at a row's end that are no whole four go to chain 0 after all others. */
enum {
    MOST_GROUPS = 512, /* of a part, which is whole segments */
    SEGMENT = 32,
    MOST_STRIDE = 4096,
    WINDOW = 64,       /* groups that are turned alike, and at most of which one is kept */
    FEW_ROWS = 8,      /* of x at most that are no panel: a lane is a row of D; in a panel a lane is a row of x */
    TURNED_ROWS = 128, /* of x at most that meet a sample's turns at once, see variant_turns.h */
};

typedef struct { /* rows [row, last_row) and elements [group, last_group) of each, group a multiple of 4 */
    const Sample *sample;
    int64_t row, last_row, group, last_group;
} SamplePart;

/* What is mixed for a block of rows, but for the groups' share. */
static inline uint32_t sample_block(const Sample *s, int64_t block) { return s->seed + 0x9E3779B1u * (uint32_t)block; }

static inline uint32_t sample_mix(uint32_t of_block, uint32_t group) {
    uint32_t h = of_block + 0x85EBCA77u * group;
    h ^= h >> 16;
    h *= 0x85EBCA6Bu;
    h ^= h >> 13;
    h *= 0xC2B2AE35u;
    return h ^ h >> 16;
}

/* How far the diagonal of a block of rows and a group of columns is turned. */
static inline uint32_t sample_shift(const Sample *s, int64_t block, int64_t group) {
    return (sample_mix(sample_block(s, block), (uint32_t)group) >> 16) * (uint32_t)s->stride >> 16;
}

/* The first group that an element of a row can be in, whatever the row. */
static inline int64_t sample_first(const Sample *s, int64_t element) { return element / s->kept * s->window; }

/* Elements of a row of n columns, those of groups that are not there among them. */
static inline int64_t sample_elements(const Sample *s, int64_t n) {
    return s->kept * ceil_div(ceil_div(n, s->stride), s->window);
}

/* What is laid out for vectors along the rows of a block: `pitch` numbers a group, its columns once and once more, so
 * that the columns of a block's turned diagonal are beside each other from any shift on, and `lanes` beyond all. */
static inline int64_t sample_pitch(int64_t stride, int64_t lanes) { return stride - 1 + round_up(stride, lanes); }

/* The same in 16 bits, for shuffles: a group's columns once, and as many numbers as a register is cut into. */
static inline int64_t turned_pitch(int64_t stride, int64_t smallest) {
    int64_t pitch = stride <= 4 ? 4 : stride <= 8 ? 8 : 16;
    return pitch > smallest ? pitch : smallest;
}

/* Whether kept and window are a share as samples.py has them. */
static inline int share_fits(const Sample *s) {
    int64_t w = s->window;
    return w >= 1 && w <= WINDOW && !(w & (w - 1)) && (s->kept == 1 || (s->kept == 3 && w >= 4));
}

/* Whether the samples of some slots are of [m, n] and all there. */
static inline int samples_fit(const Sample *samples, int64_t sample_count, const int64_t *starts, int64_t slot_count,
                              const int32_t *slots, int64_t count, int64_t m, int64_t n) {
    if (m < 0 || n < 0 || slot_count < 0 || sample_count < 0 || (slot_count && !starts) || (sample_count && !samples))
        return 0;
    for (int64_t i = 0; i < count; i++) {
        if (slots[i] < 0 || slots[i] >= slot_count) continue;
        int64_t first = starts[slots[i]], last = starts[slots[i] + 1];
        if (first < 0 || last < first || last > sample_count) return 0;
        for (const Sample *s = samples + first; s < samples + last; s++)
            if (s->stride < 1 || s->stride >= MOST_STRIDE || s->rows != m || s->row_bytes < 0 ||
                (!s->codes && m && n) || !share_fits(s) || s->bytes < bytes_of(sample_elements(s, n)))
                return 0;
    }
    return 1;
}

#endif
