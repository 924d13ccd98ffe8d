/* Memory for large fresh outputs.
 *
 * Page faults cost a fresh array more than dropout does: 64 MiB of new pages take about as long as copying 64 MiB twice.
 * So the memory of an output that nobody holds any more is kept, up to a limit, and handed to the next one of its size;
 * what has waited longest makes room.
 * Where the system has no memory left, what is kept goes back to it and it is asked again.
 * The list is short, its lock held for a few instructions and only ever tried: on contention memory comes from the system, so
 * that a fork cannot deadlock. */
#include "buffer_pool.h"

#if defined(__linux__)
#include <stdatomic.h>
#include <sched.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

enum { MAX_KEPT = 32 };

typedef struct {
    void *start;
    size_t bytes;
} buffer;

static buffer kept[MAX_KEPT];  /* from the longest unused to the latest */
static size_t kept_count, kept_bytes, limit;
static atomic_flag taken = ATOMIC_FLAG_INIT;

static int try_lock(void)
{
    return !atomic_flag_test_and_set_explicit(&taken, memory_order_acquire);
}

static void unlock(void)
{
    atomic_flag_clear_explicit(&taken, memory_order_release);
}

static size_t whole(size_t bytes)
{
    return (bytes + FD_PAGE - 1) / FD_PAGE * FD_PAGE;
}

static void *from_system(size_t bytes)
{
    char *start = mmap(NULL, bytes + FD_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (start == MAP_FAILED)
        return NULL;
    size_t before = -(uintptr_t)start % FD_PAGE;
    if (before)
        munmap(start, before);
    munmap(start + before + bytes, FD_PAGE - before);
    madvise(start + before, bytes, MADV_HUGEPAGE);  /* a wish: without it the pages are small */
    return start + before;
}

/* Takes one off the list. */
static buffer leave(size_t i)
{
    const buffer left = kept[i];
    kept_bytes -= left.bytes;
    kept_count--;
    memmove(kept + i, kept + i + 1, (kept_count - i) * sizeof *kept);
    return left;
}

static void to_system(const buffer *buffers, size_t count)
{
    for (size_t i = 0; i < count; i++)
        munmap(buffers[i].start, buffers[i].bytes);
}

void *fd_pool_take(size_t bytes)
{
    bytes = whole(bytes);
    if (bytes > limit)
        return NULL;
    if (try_lock()) {
        for (size_t i = 0; i < kept_count; i++)
            if (kept[i].bytes == bytes) {
                void *start = leave(i).start;
                unlock();
                return start;
            }
        unlock();
    }
    void *start = from_system(bytes);
    return start || !fd_pool_release() ? start : from_system(bytes);
}

void fd_pool_give(void *start, size_t bytes)
{
    bytes = whole(bytes);
    if (bytes > limit || !try_lock()) {
        munmap(start, bytes);
        return;
    }
    buffer old[MAX_KEPT];
    size_t count = 0;
    while (kept_count == MAX_KEPT || kept_bytes + bytes > limit)
        old[count++] = leave(0);
    kept[kept_count++] = (buffer){start, bytes};
    kept_bytes += bytes;
    unlock();
    to_system(old, count);
}

size_t fd_pool_release(void)
{
    buffer old[MAX_KEPT];
    size_t count, bytes;
    for (int tries = 0; !try_lock(); tries++) {
        if (tries == 1000)
            return 0;
        sched_yield();
    }
    memcpy(old, kept, sizeof old);
    count = kept_count;
    bytes = kept_bytes;
    kept_count = kept_bytes = 0;
    unlock();
    to_system(old, count);
    return bytes;
}

void fd_pool_limit(size_t bytes)
{
    limit = bytes;
    if (kept_bytes > limit)
        fd_pool_release();
}

size_t fd_pool_kept(void)
{
    return kept_bytes;
}

void fd_pool_after_fork(void)
{
    if (!try_lock())  /* a thread that is not here was changing the list */
        kept_count = kept_bytes = 0;
    unlock();
}

#else

void *fd_pool_take(size_t bytes) { return (void)bytes, (void *)0; }
void fd_pool_give(void *start, size_t bytes) { (void)start, (void)bytes; }
void fd_pool_limit(size_t bytes) { (void)bytes; }
size_t fd_pool_kept(void) { return 0; }
size_t fd_pool_release(void) { return 0; }
void fd_pool_after_fork(void) {}

#endif
