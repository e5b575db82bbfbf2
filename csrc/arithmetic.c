#define _GNU_SOURCE
#include "arithmetic.h"

#include <stdint.h>

#if defined __x86_64__ && defined __GLIBC__
static unsigned short x87_control(void)
{
    unsigned short control;
    __asm__ volatile("fnstcw %0" : "=m"(control));
    return control;
}

static unsigned short x87_status(void)
{
    unsigned short status;
    __asm__ volatile("fnstsw %0" : "=m"(status));
    return status & 0x3F;
}

/* The C library's functions take a quarter of a microsecond, which is more than a small step. */
static int save_usual(struct arithmetic *saved)
{
    saved->x87_control = x87_control();
    saved->x87_status = x87_status();
    saved->mxcsr = __builtin_ia32_stmxcsr();
    return (saved->mxcsr & 0xFFC0) == 0x1F80 && (saved->x87_control & 0xF3F) == 0x33F;
}

static void restore_usual(const struct arithmetic *saved)
{
    if (x87_control() != saved->x87_control || x87_status() != saved->x87_status) {
        fenv_t now;
        fegetenv(&now);
        now.__control_word = saved->x87_control;
        now.__status_word = (unsigned short)((now.__status_word & ~0x3F) | saved->x87_status);
        fesetenv(&now);
    }
    __builtin_ia32_ldmxcsr(saved->mxcsr);
}
#else
static int save_usual(struct arithmetic *saved)
{
    (void)saved;
    return 0;
}

static void restore_usual(const struct arithmetic *saved) { (void)saved; }
#endif

int arithmetic_enter(struct arithmetic *saved)
{
    saved->is_usual = save_usual(saved);
    if (saved->is_usual)
        return 0;
    int unusual = fegetround() != FE_TONEAREST;
#ifdef __GLIBC__
    unusual |= fegetexcept() != 0;
#endif
#ifdef __SSE__
    unusual |= (__builtin_ia32_stmxcsr() & 0xFFC0) != 0x1F80; /* masks, rounding, flush-to-zero */
#elif defined __aarch64__
    uint64_t control;
    __asm__("mrs %0, fpcr" : "=r"(control));
    unusual |= control != 0;
#endif
    fegetenv(&saved->floating_point);
    /* Not feholdexcept: rounding mode and flush-to-zero must go as well, or Python misreads numbers. */
    fesetenv(FE_DFL_ENV);
    return unusual;
}

void arithmetic_leave(const struct arithmetic *saved)
{
    if (saved->is_usual)
        restore_usual(saved);
    else
        fesetenv(&saved->floating_point);
}
