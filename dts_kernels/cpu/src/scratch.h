/* Memory that a call needs while it runs; each thread keeps what it last had. */
#ifndef DTS_SCRATCH_H
#define DTS_SCRATCH_H
#include <stddef.h>

/* `size` bytes, 64-byte aligned, NULL where there are none; all of them go back before the thread ends. */
void *dts_scratch(size_t size);
void dts_scratch_back(void *memory);

#endif
