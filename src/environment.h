/* The floating-point environment that kernels compute in, whatever the caller's is: to nearest, half to even, subnormal
 * numbers as they are, no traps.  So y depends neither on what another library has set (flush to zero by -ffast-math, a
 * rounding mode) nor on which thread computes it.
 *
 * Between fd_enter_environment and fd_leave_environment stands nothing but a call of another file's function: compilers move
 * arithmetic across both. */
#ifndef FASTDROP_ENVIRONMENT_H
#define FASTDROP_ENVIRONMENT_H

#if defined(__SSE2__) && defined(__x86_64__)

typedef unsigned fd_environment;

static inline fd_environment fd_enter_environment(void)
{
    const unsigned normal = 0x1F80, flags = 0x3F, caller = __builtin_ia32_stmxcsr();
    if ((caller & ~flags) != normal)  /* to set it takes longer than to look */
        __builtin_ia32_ldmxcsr(normal);
    return caller;
}

static inline void fd_leave_environment(fd_environment caller)
{
    if ((caller & ~0x3Fu) != 0x1F80)
        __builtin_ia32_ldmxcsr(caller);
}

#elif defined(__aarch64__)

#include <stdint.h>

typedef uint64_t fd_environment;

static inline fd_environment fd_enter_environment(void)
{
    fd_environment caller;
    __asm__ volatile("mrs %0, fpcr" : "=r"(caller));
    if (caller)
        __asm__ volatile("msr fpcr, %0" : : "r"((fd_environment)0));
    return caller;
}

static inline void fd_leave_environment(fd_environment caller)
{
    if (caller)
        __asm__ volatile("msr fpcr, %0" : : "r"(caller));
}

#else

#include <fenv.h>

typedef fenv_t fd_environment;

static inline fd_environment fd_enter_environment(void)
{
    fd_environment caller;
    fegetenv(&caller);
    fesetenv(FE_DFL_ENV);
    return caller;
}

static inline void fd_leave_environment(fd_environment caller)
{
    fesetenv(&caller);
}

#endif

/* After stores past the cache, before another thread may read them. */
static inline void fd_fence(void)
{
#if defined(__x86_64__)
    __builtin_ia32_sfence();
#endif
}

#endif
