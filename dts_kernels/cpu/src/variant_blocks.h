/* The inner loops of row blocks; included by variant.c after its SIMD header.
 *
 * A decoded tile of V is [quads of four rows of V][vectors][lane]: a vector holds LANES ranks, those of LANES / 4 bytes,
 * plane by plane (rank 4 j + plane of its byte j in lane plane * LANES / 4 + j).  A tile of U is [bytes][4 vectors][lane],
 * a column a lane, the byte's four ranks in the lane's four bytes.
 *
 * WORDS (AVX2): a number is one int16 of both digits, and so is a code, which leaves half the multiplications.  Tiles
 * are [quads][2][vectors][lane][2], the first two rows of V, then the other two; of U [bytes][2][4 vectors][lane][2].
 */

enum { VECTOR_BYTES = LANES / 4 };
enum { ROWS_AHEAD = 6 }; /* whose y and out are fetched */
#ifdef WORDS
#define BLOCK_ROWS 2 /* of x at once in registers */
#elif WIDE_REGISTERS
#define BLOCK_ROWS 3
#else
#define BLOCK_ROWS 1
#endif

#ifndef COMPACTS
INLINE void compact(vec c[4]) {
    uint8_t planes[4][4 * LANES], vectors[4][4 * LANES];
    memcpy(planes, c, sizeof planes);
    for (int s = 0; s < 4; s++)
        for (int i = 0; i < 4; i++) memcpy(vectors[s] + i * LANES, planes[i] + s * LANES, LANES);
    memcpy(c, vectors, sizeof vectors);
}
#endif

#ifdef WORDS
enum { BLOCK_DIGIT = 2 };

static void quantise_block(const float *x, int64_t count, int64_t padded, int limit, Digits *out) {
    int16_t *words = (int16_t *)(void *)out->high;
    memset(words + count, 0, (size_t)(padded - count) * 2);
    float inverse = start_digits(largest_of(x, count), limit, out);
    if (inverse == 0) {
        memset(words, 0, (size_t)count * 2);
        return;
    }
    uint32_t sum = 0;
    ELEMENTWISE
    for (int64_t i = 0; i < count; i++) {
        int32_t q = to_integer(x[i] * inverse);
        sum += (uint32_t)q;
        words[i] = (int16_t)q;
    }
    out->sum = sum;
}

static void decode_ranks(const uint8_t *v, int64_t stride, int64_t n, int bytes, uint8_t *tile) {
    int vectors = (bytes + VECTOR_BYTES - 1) / VECTOR_BYTES;
    for (int64_t q = 0; q < n; q += 4, tile += 2 * vectors * BYTES) {
        const uint8_t *r0 = v + q * stride, *r1 = q + 1 < n ? r0 + stride : r0, *r2 = q + 2 < n ? r1 + stride : r0,
                      *r3 = q + 3 < n ? r2 + stride : r0;
        vec c[4]; /* rows 0, 2, 1, 3, so that 0 and 1 are the lower bytes of the words */
        decode4(bytes == LANES ? load_quad(r0, r2, r1, r3) : quad_part(r0, r2, r1, r3, bytes), c);
        compact(c);
        for (int i = 0; i < vectors; i++) {
            store_bytes(tile + i * BYTES, first_words(c[i]));
            store_bytes(tile + (vectors + i) * BYTES, second_words(c[i]));
        }
    }
}

INLINE void sum_words(int rows, int vectors, int64_t quads, const uint8_t *tile, const int8_t *const *digits,
                      acc a[][4]) {
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < vectors; i++) a[r][i] = zero();
    for (int64_t pair = 0; pair < 2 * quads; pair++, tile += vectors * BYTES) {
        vec x[BLOCK_ROWS];
        for (int r = 0; r < rows; r++) x[r] = broadcast(digits[2 * r] + 4 * pair);
        for (int i = 0; i < vectors; i++) {
            vec c = load_bytes(tile + i * BYTES);
            for (int r = 0; r < rows; r++) a[r][i] = dot_words(a[r][i], c, x[r]);
        }
    }
}

INLINE void multiply_some(int rows, int vectors, int64_t quads, const uint8_t *tile, const int8_t *const *digits,
                          uint32_t *const *sums) {
    acc a[BLOCK_ROWS][4];
    sum_words(rows, vectors, quads, tile, digits, a);
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < vectors; i++) add_store(sums[r] + i * LANES, a[r][i]);
}
#else
enum { BLOCK_DIGIT = 1 };
#define quantise_block quantise

static void decode_ranks(const uint8_t *v, int64_t stride, int64_t n, int bytes, uint8_t *tile) {
    size_t size = (size_t)((bytes + VECTOR_BYTES - 1) / VECTOR_BYTES) * BYTES;
    for (int64_t q = 0; q < n; q += 4, tile += size) {
        const uint8_t *r0 = v + q * stride, *r1 = q + 1 < n ? r0 + stride : r0, *r2 = q + 2 < n ? r1 + stride : r0,
                      *r3 = q + 3 < n ? r2 + stride : r0;
        vec c[4];
        decode4(bytes == LANES ? load_quad(r0, r1, r2, r3) : quad_part(r0, r1, r2, r3, bytes), c);
        compact(c);
        if (bytes == LANES) memcpy(tile, c, 4 * BYTES);
        else memcpy(tile, c, size);
    }
}

INLINE void sum_vectors(int rows, int vectors, int64_t quads, const uint8_t *tile, const int8_t *const *digits,
                        acc a[2 * MAX_ROWS][4]) {
    for (int d = 0; d < 2 * rows; d++)
        for (int i = 0; i < vectors; i++) a[d][i] = zero();
    for (int64_t q = 0; q < quads; q++, tile += vectors * BYTES) {
        vec c[4];
        for (int i = 0; i < vectors; i++) c[i] = load_bytes(tile + i * BYTES);
        for (int d = 0; d < 2 * rows; d++) {
            vec x = broadcast(digits[d] + 4 * q);
            for (int i = 0; i < vectors; i++) a[d][i] = dot(a[d][i], c[i], x);
        }
    }
}

INLINE void multiply_some(int rows, int vectors, int64_t quads, const uint8_t *tile, const int8_t *const *digits,
                          uint32_t *const *sums) {
    acc a[2 * MAX_ROWS][4];
    sum_vectors(rows, vectors, quads, tile, digits, a);
    add_parts(rows, vectors, a, sums);
}

#endif

static void multiply_ranks(int64_t rows, int vectors, int64_t quads, const uint8_t *tile, const int8_t *const *digits,
                           uint32_t *const *sums) {
    for (; rows >= BLOCK_ROWS; rows -= BLOCK_ROWS, digits += 2 * BLOCK_ROWS, sums += BLOCK_ROWS) {
        if (vectors == 4) multiply_some(BLOCK_ROWS, 4, quads, tile, digits, sums);
        else if (vectors == 3) multiply_some(BLOCK_ROWS, 3, quads, tile, digits, sums);
        else if (vectors == 2) multiply_some(BLOCK_ROWS, 2, quads, tile, digits, sums);
        else multiply_some(BLOCK_ROWS, 1, quads, tile, digits, sums);
    }
#if BLOCK_ROWS > 1
    for (; rows > 0; rows--, digits += 2, sums++) {
        if (vectors == 4) multiply_some(1, 4, quads, tile, digits, sums);
        else if (vectors == 3) multiply_some(1, 3, quads, tile, digits, sums);
        else if (vectors == 2) multiply_some(1, 2, quads, tile, digits, sums);
        else multiply_some(1, 1, quads, tile, digits, sums);
    }
#endif
}

/* t[rank] = (sums - offset) * (sigma * scale), from the order of the vectors to that of the ranks */
static void scale_ranks(const uint32_t *sums, uint32_t offset, const float *sigma, float scale, int64_t rank,
                        float *t) {
    for (int64_t r = 0; r < rank; r += LANES)
        for (int j = 0; j < VECTOR_BYTES; j++)
            for (int i = 0; i < 4; i++) t[r + 4 * j + i] = (float)(int32_t)(sums[r + i * VECTOR_BYTES + j] - offset);
    ELEMENTWISE
    for (int64_t r = 0; r < rank; r++) t[r] *= sigma[r] * scale;
}

#if defined SPREADS || defined WORDS
/* bytes [rows][16] -> [16][rows], beside each other; rows: 8 or 16 */
INLINE void transpose(int rows, __m128i r[]) {
    __m128i a[16];
    for (int level = 1; level < rows; level *= 2) {
        for (int i = 0; i < rows / 2; i++) {
            a[2 * i] = _mm_unpacklo_epi8(r[i], r[i + rows / 2]);
            a[2 * i + 1] = _mm_unpackhi_epi8(r[i], r[i + rows / 2]);
        }
        for (int i = 0; i < rows; i++) r[i] = a[i];
    }
}
#endif

#ifdef SPREADS
static void decode_columns(const uint8_t *u, int64_t stride, int64_t rows, int64_t bytes, uint8_t *tile) {
    for (int c = 0; c < 4; c++)
        for (int64_t at = 0; at < bytes; at += 16) {
            int64_t count = bytes - at < 16 ? bytes - at : 16;
            __mmask16 some = (__mmask16)((1u << count) - 1);
            __m128i r[16];
            for (int64_t o = 16 * c; o < 16 * c + 16; o++) /* columns past the last row repeat it; nobody reads them */
                r[o - 16 * c] = _mm_maskz_loadu_epi8(some, u + (o < rows ? o : rows - 1) * stride + at);
            transpose(16, r);
            if (count == 16)
                for (int j = 0; j < 16; j++) _mm512_storeu_si512(tile + ((at + j) * 4 + c) * BYTES, spread(r[j]));
            else {
                __m128i kept[16];
                memcpy(kept, r, sizeof kept);
                for (int j = 0; j < count; j++) _mm512_storeu_si512(tile + ((at + j) * 4 + c) * BYTES, spread(kept[j]));
            }
        }
}
#else
static void decode_columns(const uint8_t *u, int64_t stride, int64_t rows, int64_t bytes, uint8_t *tile) {
    static const uint8_t number[4] = {5, 8, 3, 0};
    uint8_t table[256][4]; /* a byte's four ranks are a lane's four bytes */
    for (int b = 0; b < 256; b++)
        for (int i = 0; i < 4; i++) table[b][i] = number[b >> 2 * i & 3];
    for (int64_t o = 0; o < TILE; o++) { /* columns past the last row repeat it; nobody reads them */
        const uint8_t *row = u + (o < rows ? o : rows - 1) * stride;
        for (int64_t j = 0; j < bytes; j++) memcpy(tile + (j * TILE + o) * 4, table[row[j]], 4);
    }
}
#endif

#ifdef WORDS
static void decode_block(const uint8_t *u, int64_t stride, int64_t rows, int64_t bytes, uint8_t *tile) {
    for (int c = 0; c < 4; c++)
        for (int64_t at = 0; at < bytes; at += 16) {
            int64_t count = bytes - at < 16 ? bytes - at : 16;
            uint8_t lines[16][8], ends[8][16] = {{0}};
            __m128i r[8];
            for (int64_t i = 0, o = 8 * c; i < 8;
                 i++, o++) { /* columns past the last row repeat it; nobody reads them */
                const uint8_t *row = u + (o < rows ? o : rows - 1) * stride + at;
                if (count < 16) row = memcpy(ends[i], row, (size_t)count);
                r[i] = _mm_loadu_si128((const void *)row);
            }
            transpose(8, r);
            memcpy(lines, r, sizeof lines);
            for (int64_t j = 0; j < count; j++) {
                uint8_t *to = tile + ((at + j) * 8 + c) * BYTES;
                store_bytes(to, spread_words(lines[j], 0));
                store_bytes(to + 4 * BYTES, spread_words(lines[j], 4));
            }
        }
}
#else
#define decode_block decode_columns
#endif

/* Sums of a tile's columns times a row's scale, with the row's addend and y: no separate passes.  The order of the
 * float operations is that of expand.c. */
INLINE void finish(acc a[4], const Digits *t, const BlockRow *row, const float *add, int dtype, int64_t columns) {
    fvec scale = fset(t->scale), gamma = fset(row->gamma), part[4];
    for (int i = 0; i < 4; i++) part[i] = fadd(fset(0), fmul(to_float(a[i], 4 * t->sum), scale)); /* no -0 */
    if (dtype == FLOAT32 && columns == TILE) {
        const float *y = (const float *)row->y;
        for (int i = 0; i < 4; i++) {
            if (add) part[i] = fadd(fmul(gamma, fload(add + i * LANES)), part[i]);
            if (y) part[i] = fadd(fload(y + i * LANES), part[i]);
            fstore((float *)row->out + i * LANES, part[i]);
        }
        return;
    }
    float all[TILE];
    for (int i = 0; i < 4; i++) fstore(all + i * LANES, part[i]);
    for (int64_t c = 0; add && c < columns; c++) all[c] = row->gamma * add[c] + all[c];
    narrow(all, row->y, row->out, dtype, columns);
}

INLINE void expand_some(int rows, int64_t quads, int64_t columns, const uint8_t *tile, const Digits *t,
                        const BlockRow *row, const float *add, int dtype) {
    acc a[2 * MAX_ROWS][4];
    const int8_t *digits[2 * MAX_ROWS];
    for (int r = 0; r < rows; r++) digits[2 * r] = t[r].high, digits[2 * r + 1] = t[r].low;
#ifdef WORDS
    sum_words(rows, 4, quads, tile, digits, a);
    for (int r = 0; r < rows; r++) finish(a[r], &t[r], &row[r], add, dtype, columns);
#else
    sum_vectors(rows, 4, quads, tile, digits, a);
    for (int r = 0; r < rows; r++) {
        acc both[4];
        for (int i = 0; i < 4; i++) both[i] = combine(a[2 * r][i], a[2 * r + 1][i]);
        finish(both, &t[r], &row[r], add, dtype, columns);
    }
#endif
}

/* What finish() reads and writes of a row: often beyond L2, and no run. */
INLINE void fetch_row(const BlockRow *row, int64_t bytes) {
    for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(row->out + at, 1);
    if (row->y && row->y != row->out)
        for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(row->y + at, 0);
}

static void expand_block(int64_t rows, int64_t quads, int64_t columns, const uint8_t *tile, const Digits *t,
                         const BlockRow *row, const float *add, int dtype) {
    for (; rows >= BLOCK_ROWS; rows -= BLOCK_ROWS, t += BLOCK_ROWS, row += BLOCK_ROWS) {
        for (int64_t r = ROWS_AHEAD; r < ROWS_AHEAD + BLOCK_ROWS && r < rows; r++)
            fetch_row(&row[r], columns * size_of(dtype));
        expand_some(BLOCK_ROWS, quads, columns, tile, t, row, add, dtype);
    }
#if BLOCK_ROWS > 1
    for (; rows > 0; rows--, t++, row++) expand_some(1, quads, columns, tile, t, row, add, dtype);
#endif
}
