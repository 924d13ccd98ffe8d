/* Which instruction set runs: the best at first use, or the one that fd_use_isa chose; seen through fd_isa(). */
#include "dispatch.h"

#include <string.h>
#if defined(__x86_64__)
#include <cpuid.h>

static int has_f16c(void)  /* __builtin_cpu_supports knows it in GCC 11 and later, not in clang 14 */
{
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && c & bit_F16C;
}
#endif

enum { MAX_ISAS = 3 };

static size_t find(const fd_kernels *found[MAX_ISAS])  /* best first, scalar last */
{
    size_t n = 0;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")
        && __builtin_cpu_supports("avx512dq"))
        found[n++] = &fd_kernels_avx512;
    if (__builtin_cpu_supports("avx2") && has_f16c() && __builtin_cpu_supports("fma"))
        found[n++] = &fd_kernels_avx2;
#elif defined(__aarch64__)
    found[n++] = &fd_kernels_neon;
#endif
    found[n++] = &fd_kernels_scalar;
    return n;
}

/* Atomic, and threads that are first at the same time choose the same. */
static const fd_kernels *chosen;

const fd_kernels *fd_kernels_in_use(void)
{
    const fd_kernels *kernels = __atomic_load_n(&chosen, __ATOMIC_RELAXED);
    if (!kernels) {
        const fd_kernels *found[MAX_ISAS], *none = NULL;
        find(found);
        kernels = found[0];
        if (!__atomic_compare_exchange_n(&chosen, &none, kernels, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
            kernels = none;  /* what another thread has chosen meanwhile */
    }
    return kernels;
}

const char *fd_isa(void)
{
    return fd_kernels_in_use()->isa;
}

const char *const *fd_isa_found(void)
{
    static const char *names[MAX_ISAS + 1];  /* every call writes the same */
    const fd_kernels *found[MAX_ISAS];
    for (size_t n = find(found); n--;)
        __atomic_store_n(&names[n], found[n]->isa, __ATOMIC_RELAXED);
    return names;
}

int fd_use_isa(const char *name)
{
    const fd_kernels *found[MAX_ISAS];
    for (size_t n = find(found); n--;)
        if (!strcmp(found[n]->isa, name)) {
            __atomic_store_n(&chosen, found[n], __ATOMIC_RELAXED);
            return 0;
        }
    return -1;
}
