/* Scratch memory stays with its thread from call to call.
 *
 * malloc gives the end of its heap back to the system as soon as enough of it is free, so a call's megabytes, taken and
 * freed between a model's own tensors, let those have new pages again and again: a fault for every 4 KiB, which took as
 * long as the products of a sample.
 */
#include "scratch.h"

#include <pthread.h>
#include <stdlib.h>

enum {
    KEPT = 4,         /* pieces a thread keeps */
    SMALL = 32 << 10, /* bytes below which malloc gives nothing back by itself */
    MOST = 4 << 20,   /* of a piece that is kept */
};

typedef struct {
    struct Piece {
        void *memory;
        size_t size;
        int taken;
    } piece[KEPT];
} Kept;

static pthread_key_t key;
static int ready;

static void *fresh(size_t size) {
    void *memory = NULL;
    return posix_memalign(&memory, 64, size ? size : 64) ? NULL : memory;
}

static void end_of_thread(void *argument) {
    Kept *kept = argument;
    for (int i = 0; i < KEPT; i++) free(kept->piece[i].memory);
    free(kept);
}

static void make_key(void) { ready = !pthread_key_create(&key, end_of_thread); }

/* What this thread keeps, NULL where nothing is to be kept: the sanitizers see every piece's own ends. */
static Kept *of_thread(void) {
#if defined __SANITIZE_ADDRESS__ || defined __SANITIZE_THREAD__
    return NULL;
#else
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, make_key);
    Kept *kept = ready ? pthread_getspecific(key) : NULL;
    if (ready && !kept && (kept = calloc(1, sizeof *kept)) && pthread_setspecific(key, kept)) free(kept), kept = NULL;
    return kept;
#endif
}

void *dts_scratch(size_t size) {
    Kept *kept = size < SMALL || size > MOST ? NULL : of_thread();
    struct Piece *best = NULL; /* the smallest that is large enough, or else the largest */
    for (int i = 0; kept && i < KEPT; i++) {
        struct Piece *one = &kept->piece[i];
        if (one->taken) continue;
        int better = !best || (one->size >= size ? best->size < size || one->size < best->size
                                                 : best->size < size && one->size > best->size);
        if (better) best = one;
    }
    if (!best) return fresh(size);
    if (best->size < size) {
        free(best->memory);
        best->memory = fresh(size);
        best->size = best->memory ? size : 0;
    }
    best->taken = best->memory != NULL;
    return best->memory;
}

void dts_scratch_back(void *memory) {
    Kept *kept = memory ? of_thread() : NULL;
    for (int i = 0; kept && i < KEPT; i++)
        if (kept->piece[i].memory == memory && kept->piece[i].taken) {
            kept->piece[i].taken = 0;
            return;
        }
    free(memory);
}
