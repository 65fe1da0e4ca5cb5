#define _GNU_SOURCE
#include "parallel.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>

enum {
    MOST_THREADS = 1024,
    SHARE = 1 << 20, /* codes x rows that are worth a thread */
    /* threads: so few cores are shared with other programs, and a join that waits for a worker to be scheduled costs
     * milliseconds, all of a small product's time many times over */
    FEW = 4,
    LARGE_SHARE = 1 << 23, /* worth a thread there: about 0.2 ms */
};

typedef struct {
    void (*work)(void *, int64_t, int);
    void *context;
    int64_t items;
    atomic_llong next;
    atomic_int worker;
} Region;

static void take_items(void *argument) {
    Region *region = argument;
    int worker = atomic_fetch_add(&region->worker, 1);
    for (int64_t item; (item = atomic_fetch_add(&region->next, 1)) < region->items;)
        region->work(region->context, item, worker);
}
static void *thread_main(void *argument) {
    take_items(argument);
    return NULL;
}

/* The OpenMP pool that the process already has (torch's): a second one would fight it for the cores.  Both common
 * run-times offer this entry; without one, plain threads do. */
typedef void (*OpenMP)(void (*)(void *), void *, unsigned, unsigned);

void dts_parallel(int threads, int64_t items, void (*work)(void *, int64_t, int), void *context) {
    Region region = {.work = work, .context = context, .items = items};
    if (threads > items) threads = (int)items;
    if (threads > MOST_THREADS) threads = MOST_THREADS;
    if (threads <= 1) {
        take_items(&region);
        return;
    }
    static _Atomic(OpenMP) found;
    OpenMP openmp = atomic_load(&found);
    if (!openmp) {
        *(void **)&openmp = dlsym(RTLD_DEFAULT, "GOMP_parallel");
        atomic_store(&found, openmp);
    }
    if (openmp) {
        openmp(take_items, &region, (unsigned)threads, 0);
        return;
    }
    pthread_t others[MOST_THREADS];
    int started = 0;
    while (started < threads - 1 && !pthread_create(&others[started], NULL, thread_main, &region)) started++;
    take_items(&region);
    while (started) pthread_join(others[--started], NULL);
}

int dts_useful_threads(int threads, int64_t codes) {
    int64_t useful = codes / (threads > FEW ? SHARE : LARGE_SHARE);
    return useful >= threads ? threads : useful > 1 ? (int)useful : 1;
}
