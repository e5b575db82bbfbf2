#define _GNU_SOURCE
#include "arithmetic.h"

#include <stddef.h>
#include <stdint.h>

#define FLUSHES "flushes denormals to 0, as a program linked with -Ofast or -ffast-math does"
#define TRAPS "traps floating-point errors"
#define ROUNDS "does not round to the nearest number"

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

const char *arithmetic_enter(struct arithmetic *saved)
{
    saved->is_usual = save_usual(saved);
    if (saved->is_usual)
        return NULL;
    const char *unusual = NULL;
#ifdef __SSE__
    unsigned control = __builtin_ia32_stmxcsr();
    if ((control & 0xFFC0) != 0x1F80)
        unusual = control & 0x6000 ? ROUNDS : control & 0x8040 ? FLUSHES : TRAPS;
#elif defined __aarch64__
    uint64_t control;
    __asm__("mrs %0, fpcr" : "=r"(control));
    if (control != 0)
        unusual = control & 1 << 24 ? FLUSHES : TRAPS;
#endif
#ifdef __GLIBC__
    if (fegetexcept() != 0)
        unusual = TRAPS;
#endif
    if (fegetround() != FE_TONEAREST)
        unusual = ROUNDS; /* x87's, where there is one: the C library asks no other */
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
