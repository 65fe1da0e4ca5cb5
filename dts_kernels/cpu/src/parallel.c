#define _GNU_SOURCE
#include "parallel.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

enum {
    MOST_THREADS = 1024,
    SHARE = 1 << 19, /* codes x rows that are worth a thread: some 10 us */
    /* threads: so few cores are shared with other programs, and a join that waits for a worker to be scheduled costs
     * milliseconds, all of a small product's time many times over */
    FEW = 4,
    LATE = 100000, /* ns: a longer wait than that, and than the work itself took, was for the scheduler */
    ALONE = 64,    /* times as long as the wait products then stay in one thread: 1.6 % is lost at most */
    SPEED = 40,    /* codes that a thread does a ns: products that take longer than the wait are cut nevertheless */
};

/* Until when they do, and how long that wait was, ns. */
static atomic_llong alone_until, late;

static int64_t nanoseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000ll + now.tv_nsec;
}

typedef struct {
    void (*work)(void *, int64_t, int);
    void *context;
    int64_t items, worked; /* worked: ns that the caller itself took for its items */
    pthread_t caller;
    atomic_llong next;
    atomic_int worker;
} Region;

static void take_items(void *argument) {
    Region *region = argument;
    int worker = atomic_fetch_add(&region->worker, 1), called = pthread_equal(pthread_self(), region->caller);
    int64_t begin = called ? nanoseconds() : 0;
    for (int64_t item; (item = atomic_fetch_add(&region->next, 1)) < region->items;)
        region->work(region->context, item, worker);
    if (called) region->worked = nanoseconds() - begin;
}
static void *thread_main(void *argument) {
    take_items(argument);
    return NULL;
}

/* The OpenMP pool that the process already has (torch's): a second one would fight it for the cores.  Both common
 * run-times offer this entry; without one, plain threads do. */
typedef void (*OpenMP)(void (*)(void *), void *, unsigned, unsigned);

static void run(Region *region, int threads) {
    static _Atomic(OpenMP) found;
    OpenMP openmp = atomic_load(&found);
    if (!openmp) {
        *(void **)&openmp = dlsym(RTLD_DEFAULT, "GOMP_parallel");
        atomic_store(&found, openmp);
    }
    if (openmp) {
        openmp(take_items, region, (unsigned)threads, 0);
        return;
    }
    pthread_t others[MOST_THREADS];
    int started = 0;
    while (started < threads - 1 && !pthread_create(&others[started], NULL, thread_main, region)) started++;
    take_items(region);
    while (started) pthread_join(others[--started], NULL);
}

void dts_parallel(int threads, int64_t items, void (*work)(void *, int64_t, int), void *context) {
    Region region = {.work = work, .context = context, .items = items, .caller = pthread_self()};
    if (threads > items) threads = (int)items;
    if (threads > MOST_THREADS) threads = MOST_THREADS;
    if (threads <= 1) {
        for (int64_t item = 0; item < items; item++) work(context, item, 0);
        return;
    }
    int64_t begin = nanoseconds();
    run(&region, threads);
    int64_t end = nanoseconds(), waited = end - begin - region.worked; /* at the fork, too: for a worker to be there */
    if (waited > LATE && waited > region.worked) {
        atomic_store(&late, waited);
        atomic_store(&alone_until, end + ALONE * waited);
    }
}

int dts_useful_threads(int threads, int64_t codes) {
    int64_t share = SHARE;
    if (threads > 1 && threads <= FEW && nanoseconds() < atomic_load(&alone_until)) share = SPEED * atomic_load(&late);
    int64_t useful = codes / share;
    return useful >= threads ? threads : useful > 1 ? (int)useful : 1;
}
