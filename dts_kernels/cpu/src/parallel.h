/* Items of work over threads; each item is independent, so which thread takes it never shows in a result. */
#ifndef DTS_PARALLEL_H
#define DTS_PARALLEL_H
#include <stdint.h>

/* Call work(context, item, worker) for every item in [0, items), worker in [0, threads). */
void dts_parallel(int threads, int64_t items, void (*work)(void *, int64_t, int), void *context);

/* As many of the threads as `codes` times rows of packed factors, or work that takes as long, are worth. */
int dts_useful_threads(int threads, int64_t codes);

#endif
