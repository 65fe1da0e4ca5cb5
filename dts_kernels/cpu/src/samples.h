/* Sampled elements of a matrix D [m, n] (samples.py has their definition) and products with parts of it. */
#ifndef DTS_SAMPLES_H
#define DTS_SAMPLES_H
#include <stdint.h>

typedef struct {
    const uint8_t *codes;           /* four groups a byte, any alignment */
    int64_t row_bytes;              /* from row to row */
    int64_t stride;
    uint32_t seed;
    float scale;
    int64_t rows, bytes;            /* that there are, and bytes of a row */
} Sample;

/* A row of x has the same sums, bit for bit, whatever else is in the batch.  So the groups of a row of D are added in
 * one order by every loop: groups 4 j + p of a segment in chain p, then  sum = ((c0 + c1) + c2) + c3,  the sum being
 * chain 0 of the next segment; groups at a row's end that are no whole four go to chain 0 after all others. */
enum { MOST_GROUPS = 512,           /* of a part, which is whole segments */
       SEGMENT = 32, MOST_STRIDE = 4096 };

typedef struct {                    /* rows [row, last_row) and groups [group, last_group), group a multiple of 4 */
    const Sample *sample;
    int64_t row, last_row, group, last_group;
} SamplePart;

/* How far the diagonal of a block of rows and a group of columns is turned. */
static inline uint32_t sample_shift(const Sample *s, int64_t block, int64_t group) {
    uint32_t h = s->seed + 0x9E3779B1u * (uint32_t)block + 0x85EBCA77u * (uint32_t)group;
    h ^= h >> 16;
    h *= 0x85EBCA6Bu;
    h ^= h >> 13;
    h *= 0xC2B2AE35u;
    h ^= h >> 16;
    return (h >> 16) * (uint32_t)s->stride >> 16;
}

/* What is laid out for vectors along the rows of a block: `pitch` numbers a group, its columns once and once more, so
 * that the columns of a block's turned diagonal are beside each other from any shift on, and `lanes` beyond all. */
static inline int64_t sample_pitch(int64_t stride, int64_t lanes) {
    return stride - 1 + (stride + lanes - 1) / lanes * lanes;
}

#endif
