/* Threads that wait for ranges of a job.
 *
 * Not OpenMP: where the system refuses it a thread GNU's ends the process, in a forked child it hangs, and clang often has
 * none.  Here a range that no other thread has come for is done by the caller: nothing depends on how many there are.
 *
 * A team serves one caller at a time.  Callers at the same time have teams of their own, or where all are taken no helpers.
 * Helpers wait awhile by spinning, since to wake one takes some 50 microseconds, in which a kernel does 10**5 elements, and
 * no longer, since another process may want their CPU.  They never hold a lock while they work, and a forked child, in which
 * they are not, starts anew. */
#include "threads.h"

#include "environment.h"

void fd_work_on(const fd_work *work, int64_t first, int64_t last)
{
    if (first >= last)
        return;
    const fd_environment caller = fd_enter_environment();
    work->run(work->job, first, last);
    fd_leave_environment(caller);
    if (work->nontemporal)
        fd_fence();
}

#if defined(_WIN32)

void fd_threads_after_fork(void) {}

void fd_share(const fd_work *work, int threads)
{
    (void)threads;
    fd_work_on(work, 0, work->units);
}

#else

#include <pthread.h>
#include <signal.h>
#include <stddef.h>

enum {
    TEAMS = 16,
    SPIN = 2000,
    REFUSED = 100,      /* jobs until the system is asked again for a thread that it refused */
    STACK = 1 << 20,    /* bytes; kernels need 48 KiB */
};

typedef struct {
    pthread_mutex_t in_use;  /* held by the caller whose job it is */
    pthread_mutex_t lock;    /* of all below, but for `next` */
    pthread_cond_t posted, idle;
    const fd_work *work;
    int64_t parts, next;         /* next: the first part that nobody has begun */
    int seats, active;           /* helpers that may still join the job, and those that have */
    int helpers, refused;
} team;

#define NEW_TEAM                                                                                                       \
    {.in_use = PTHREAD_MUTEX_INITIALIZER, .lock = PTHREAD_MUTEX_INITIALIZER, .posted = PTHREAD_COND_INITIALIZER,       \
     .idle = PTHREAD_COND_INITIALIZER}
static team teams[TEAMS] = {[0 ... TEAMS - 1] = NEW_TEAM};

void fd_threads_after_fork(void)
{
    for (int i = 0; i < TEAMS; i++)
        teams[i] = (team)NEW_TEAM;
}

static int add(int *number, int n)  /* atomic for those that spin on it */
{
    return __atomic_add_fetch(number, n, __ATOMIC_RELAXED);
}

static void spin_while(const int *number, int is_zero)
{
    for (int i = 0; i < SPIN && (__atomic_load_n(number, __ATOMIC_RELAXED) == 0) == is_zero; i++) {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#elif defined(__aarch64__)
        __asm__ volatile("yield");
#endif
    }
}

static void work_on(team *t)
{
    int64_t part;
    while ((part = __atomic_fetch_add(&t->next, 1, __ATOMIC_RELAXED)) < t->parts)
        fd_work_on(t->work, t->work->units * part / t->parts, t->work->units * (part + 1) / t->parts);
}

static void *help(void *t_)
{
    team *t = t_;
    for (;;) {
        spin_while(&t->seats, 1);
        pthread_mutex_lock(&t->lock);
        while (t->seats == 0)
            pthread_cond_wait(&t->posted, &t->lock);
        add(&t->seats, -1);
        add(&t->active, 1);
        pthread_mutex_unlock(&t->lock);
        work_on(t);
        pthread_mutex_lock(&t->lock);
        add(&t->seats, -t->seats);  /* every part has been begun */
        if (add(&t->active, -1) == 0)
            pthread_cond_signal(&t->idle);
        pthread_mutex_unlock(&t->lock);
    }
    return NULL;
}

static const int FAULTS[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};  /* of a thread itself: never blocked */

static void hire(team *t, int helpers)
{
    pthread_attr_t attributes;
    if (t->helpers >= helpers || (t->refused && t->refused--) || pthread_attr_init(&attributes))
        return;
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, STACK);
    sigset_t all, callers;  /* a signal that the program waits for must not end up at a helper: its default is to end the process */
    sigfillset(&all);
    for (size_t i = 0; i < sizeof FAULTS / sizeof *FAULTS; i++)
        sigdelset(&all, FAULTS[i]);
    pthread_sigmask(SIG_BLOCK, &all, &callers);  /* helpers inherit it */
    for (pthread_t thread; t->helpers < helpers; t->helpers++)
        if (pthread_create(&thread, &attributes, help, t)) {
            t->refused = REFUSED;
            break;
        }
    pthread_sigmask(SIG_SETMASK, &callers, NULL);
    pthread_attr_destroy(&attributes);
}

static team *free_team(void)
{
    for (int i = 0; i < TEAMS; i++)
        if (!pthread_mutex_trylock(&teams[i].in_use))
            return &teams[i];
    return NULL;
}

void fd_share(const fd_work *work, int threads)
{
    const int64_t parts = threads < work->units ? threads : work->units;
    team *t = parts > 1 ? free_team() : NULL;
    if (!t) {
        fd_work_on(work, 0, work->units);
        return;
    }
    hire(t, (int)parts - 1);
    pthread_mutex_lock(&t->lock);
    t->work = work;
    t->parts = parts;
    t->next = 0;
    add(&t->seats, (int)parts - 1);
    for (int i = 1; i < parts; i++)
        pthread_cond_signal(&t->posted);
    pthread_mutex_unlock(&t->lock);
    work_on(t);
    spin_while(&t->active, 0);
    pthread_mutex_lock(&t->lock);
    add(&t->seats, -t->seats);
    while (t->active)
        pthread_cond_wait(&t->idle, &t->lock);
    pthread_mutex_unlock(&t->lock);
    pthread_mutex_unlock(&t->in_use);
}

#endif
