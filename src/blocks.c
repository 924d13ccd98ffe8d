/* Memory for large fresh outputs.
 *
 * Page faults cost a fresh array more than dropout does: 64 MiB of new pages take about as long as copying 64 MiB twice.
 * So the memory of an output that nobody holds any more is kept, up to a limit, and handed to the next one of its size;
 * what has waited longest makes room.
 * The list is short, and its lock is only ever tried: who finds it taken (another thread, or a thread that a fork left
 * behind) goes to the system instead, so nothing can wait here. */
#include "blocks.h"

#if defined(__linux__)
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

enum { KEPT = 32 };

static struct {
    void *block;
    size_t bytes;
} kept[KEPT];
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
    return (bytes + FD_BLOCK_UNIT - 1) / FD_BLOCK_UNIT * FD_BLOCK_UNIT;
}

static void *from_system(size_t bytes)
{
    char *start = mmap(NULL, bytes + FD_BLOCK_UNIT, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (start == MAP_FAILED)
        return NULL;
    size_t before = -(uintptr_t)start % FD_BLOCK_UNIT;
    if (before)
        munmap(start, before);
    munmap(start + before + bytes, FD_BLOCK_UNIT - before);
    madvise(start + before, bytes, MADV_HUGEPAGE);  /* a wish: without it the pages are small */
    return start + before;
}

/* Takes one off the list, which goes from the longest unused to the latest. */
static void *leave(size_t i)
{
    void *block = kept[i].block;
    kept_bytes -= kept[i].bytes;
    kept_count--;
    memmove(kept + i, kept + i + 1, (kept_count - i) * sizeof *kept);
    return block;
}

void *fd_block_take(size_t bytes)
{
    bytes = whole(bytes);
    if (bytes > limit)
        return NULL;
    if (try_lock()) {
        for (size_t i = 0; i < kept_count; i++)
            if (kept[i].bytes == bytes) {
                void *block = leave(i);
                unlock();
                return block;
            }
        unlock();
    }
    return from_system(bytes);
}

void fd_block_give(void *block, size_t bytes)
{
    bytes = whole(bytes);
    if (bytes > limit || !try_lock()) {
        munmap(block, bytes);
        return;
    }
    while (kept_count == KEPT || kept_bytes + bytes > limit) {
        size_t old = kept[0].bytes;
        munmap(leave(0), old);
    }
    kept[kept_count].block = block;
    kept[kept_count++].bytes = bytes;
    kept_bytes += bytes;
    unlock();
}

void fd_blocks_release(void)
{
    if (!try_lock())
        return;
    while (kept_count) {
        size_t bytes = kept[kept_count - 1].bytes;
        munmap(leave(kept_count - 1), bytes);
    }
    unlock();
}

void fd_blocks_limit(size_t bytes)
{
    limit = bytes;
    if (kept_bytes > limit)
        fd_blocks_release();
}

size_t fd_blocks_kept(void)
{
    return kept_bytes;
}

#else

void *fd_block_take(size_t bytes) { return (void)bytes, (void *)0; }
void fd_block_give(void *block, size_t bytes) { (void)block, (void)bytes; }
void fd_blocks_limit(size_t bytes) { (void)bytes; }
size_t fd_blocks_kept(void) { return 0; }
void fd_blocks_release(void) {}

#endif
