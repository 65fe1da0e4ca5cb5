/* Which variants of the inner loops were compiled, and which of them this machine can run. */
#include <string.h>

#include "dts.h"
#include "kernels.h"
#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

#define DECLARE(name) extern const Kernels dts_##name;
#define ADDRESS(name) &dts_##name,
VARIANTS(DECLARE)
static const Kernels *const variants[] = {VARIANTS(ADDRESS)};

static int supported(const char *name) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_cpu_init();
    int avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                 __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
    if (!strcmp(name, "avx512vbmi")) return avx512 && __builtin_cpu_supports("avx512vbmi");
    if (!strcmp(name, "avx512")) return avx512;
    if (!strcmp(name, "avx2")) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#elif defined(__aarch64__) && defined(__linux__)
    if (!strcmp(name, "neondot")) return getauxval(AT_HWCAP) >> 20 & 1; /* HWCAP_ASIMDDP */
    if (!strcmp(name, "neon")) return 1;
#elif defined(__aarch64__) && defined(__APPLE__)
    if (!strncmp(name, "neon", 4)) return 1;
#endif
    return !strcmp(name, "portable");
}

/* The i-th variant that this machine can run, fastest first, or NULL. */
const char *dts_variant(int i) {
    for (size_t k = 0; k < sizeof variants / sizeof *variants; k++)
        if (supported(variants[k]->name) && i-- == 0) return variants[k]->name;
    return NULL;
}

const Kernels *dts_find(const char *name) {
    for (size_t k = 0; k < sizeof variants / sizeof *variants; k++)
        if (!strcmp(variants[k]->name, name) && supported(name)) return variants[k];
    return NULL;
}
