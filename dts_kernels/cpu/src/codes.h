/* The only place of the C sources that knows what a code stands for: layout.py has the same. */
#ifndef DTS_CODES_H
#define DTS_CODES_H
#include <stdint.h>

/* Of codes 0..3, four a byte, the first in its lowest bits.  Integer products take value + 4 (variant.c). */
static const float code_values[4] = {1, 4, -1, -4};

/* Bytes of `count` codes. */
static inline int64_t bytes_of(int64_t count) { return (count + 3) / 4; }

static inline int code_at(const uint8_t *row, int64_t i) { return row[i / 4] >> 2 * (i % 4) & 3; }

/* t = gamma * sigma * one row of codes; values: four. */
static inline void decode_row(const uint8_t *row, int64_t rank, const float *values, const float *sigma, float gamma,
                              float *t) {
    for (int64_t r = 0; r < rank; r++) t[r] = values[code_at(row, r)] * (sigma[r] * gamma);
}

#endif
