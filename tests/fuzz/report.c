/* What a failure shows, and where chance comes from. */
#include "fuzz.h"

/* ---- failures ---- */

void tell(struct fuzzer *f, const char *why)
{
    static atomic_flag told = ATOMIC_FLAG_INIT;
    if (atomic_flag_test_and_set(&told))
        for (;;)
            pause(); /* another thread tells, and ends the process */
    dprintf(fileno(check_log), "\nfuzz: %s\n  --seed %llu, thread %d, call %ld\n", why, seed, f->number,
            f->calls);
    for (long i = f->calls - RECENT; i < f->calls; i++)
        if (i >= 0 && f->recent[i % RECENT][0])
            dprintf(fileno(check_log), "  before: %s\n", f->recent[i % RECENT]);
    for (int i = 0; i < f->depth; i++)
        dprintf(fileno(check_log), "  %s: %s\n", i ? "in it" : "now", f->frames[i].text);
}

__attribute__((noreturn, format(printf, 2, 3))) void failed(struct fuzzer *f, const char *format, ...)
{
    char why[1500];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(why, sizeof why, format, arguments);
    va_end(arguments);
    tell(f, why);
    dprintf(fileno(check_log), "  opt_error(): '%s'\n%s\n", opt_error(), opt_traceback());
    _exit(1);
}

static void crashed(int number)
{
    char why[60];
    snprintf(why, sizeof why, "signal %d", number);
    signal(number, SIG_DFL);
    if (self)
        tell(self, why);
    raise(number);
}

/* Let a stack that has run over be told of too. */
void use_signal_stack(void)
{
    static _Thread_local char memory[65536];
    const stack_t stack = {.ss_sp = memory, .ss_size = sizeof memory};
    CHECK(sigaltstack(&stack, NULL) == 0);
}

void watch_for_crashes(void)
{
    const int signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT};
    struct sigaction action = {.sa_handler = crashed, .sa_flags = SA_ONSTACK};
    for (size_t i = 0; i < sizeof signals / sizeof *signals; i++)
        CHECK(sigaction(signals[i], &action, NULL) == 0);
}

/* ---- chance ---- */

uint64_t next(struct fuzzer *f)
{
    uint64_t z = f->random += 0x9e3779b97f4a7c15; /* splitmix64 */
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

int below(struct fuzzer *f, size_t n) { return (int)(next(f) % n); }

int one_in(struct fuzzer *f, size_t n) { return below(f, n) == 0; }

const char *any(struct fuzzer *f, const char *const *table)
{
    size_t count = 0;
    while (table[count])
        count++;
    return table[below(f, count)];
}

int64_t odd_integer(struct fuzzer *f)
{
    const int64_t odd[] = {
        0, -1, 1, -2, INT_MAX, INT_MIN, INT64_MAX, INT64_MIN, INT64_MAX / 8, INT64_C(1) << 44};
    return odd[below(f, sizeof odd / sizeof *odd)];
}

double any_double(struct fuzzer *f)
{
    const double odd[] = {0, -0.0, -1, 1e308, -1e308, 1e-320, INFINITY, -INFINITY, NAN};
    return one_in(f, 4) ? odd[below(f, sizeof odd / sizeof *odd)] : below(f, 400) / 100.0;
}
