/* Which instruction set runs: found once, chosen once, seen through fd_isa(). */
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

const fd_kernels *fd_kernels_in_use = &fd_kernels_scalar;  /* until fd_use_isa has been called */

static const fd_kernels *const *kernels_found(void)
{
    static const fd_kernels *found[4];
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
    found[n] = &fd_kernels_scalar;
    return found;  /* best first, scalar last */
}

const char *fd_isa(void)
{
    return fd_kernels_in_use->isa;
}

const char *const *fd_isa_found(void)
{
    static const char *names[5];
    const fd_kernels *const *found = kernels_found();
    size_t n = 0;
    do
        names[n] = found[n]->isa;
    while (found[n++] != &fd_kernels_scalar);
    names[n] = NULL;
    return names;
}

int fd_use_isa(const char *name)
{
    const fd_kernels *const *found = kernels_found();
    for (size_t i = 0;; i++) {
        if (!strcmp(found[i]->isa, name)) {
            fd_kernels_in_use = found[i];
            return 0;
        }
        if (found[i] == &fd_kernels_scalar)
            return -1;
    }
}
