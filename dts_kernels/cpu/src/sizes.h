/* Sizes and types of what a call is given, and what it returns. */
#ifndef DTS_SIZES_H
#define DTS_SIZES_H
#include <stdint.h>

static inline int64_t ceil_div(int64_t a, int64_t by) { return (a + by - 1) / by; }
static inline int64_t round_up(int64_t a, int64_t to) { return ceil_div(a, to) * to; }
static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

enum { FLOAT32, BFLOAT16, FLOAT16 }; /* native.py has the same */
static inline int known_type(int type) { return type == FLOAT32 || type == BFLOAT16 || type == FLOAT16; }
static inline int64_t size_of(int type) { return type == FLOAT32 ? 4 : 2; }

/* What a call returns. */
enum { DONE, NO_MEMORY, NO_VARIANT, NO_ROW, NO_FIT };

/* Whether memory of `have` numbers holds [rows, columns] of them, rows `stride` numbers apart. */
static inline int holds(const void *memory, int64_t have, int64_t rows, int64_t columns, int64_t stride) {
    int64_t last;
    if (rows < 0 || columns < 0 || stride < 0) return 0;
    if (!rows || !columns) return 1;
    return memory && have >= columns && !__builtin_mul_overflow(rows - 1, stride, &last) && last <= have - columns;
}

/* Whether a routing of [entries, places] is there and gives every row an entry. */
static inline int routes(const int32_t *slots, int64_t slots_have, const float *weights, int64_t weights_have,
                         int64_t entries, int64_t places, int64_t rows) {
    return rows >= 0 && holds(slots, slots_have, entries, places, places) &&
           holds(weights, weights_have, entries, places, places) && (entries ? rows % entries == 0 : !rows);
}

#endif
