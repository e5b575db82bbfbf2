/* What a host has, and whether it still has it: for test_guest.c. */
#ifndef GUEST_H
#define GUEST_H

#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fenv.h>
#include <locale.h>
#include <math.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/time.h>

#include "check.h"

#ifdef __linux__
#include <sched.h>
#include <stdio_ext.h>
#include <sys/prctl.h>
#endif
#ifdef __SSE__
#include <xmmintrin.h>
#endif
#ifdef _OPENMP
#include <omp.h>
#endif

extern char **environ;

enum { SIGNALS = 65, FILES = 256 };

struct state {
    int traps, rounding, exceptions;
    unsigned sse;
    int threads;
    char locale[256], folder[4096], variables[65536];
    void *thread_locale;
    struct sigaction actions[SIGNALS];
    sigset_t mask;
    stack_t signal_stack;
    mode_t umask;
    int files[FILES]; /* their flags; -1 for none */
    off_t offset;     /* in what has been written to stdout */
    size_t buffers[6];
    int priority;
    struct rlimit limits[4];
    struct itimerval timer;
#ifdef __linux__
    cpu_set_t processors;
    char thread_name[16];
#endif
};

static int traps(void)
{
#ifdef __GLIBC__
    return fegetexcept();
#else
    return 0;
#endif
}

static unsigned sse(void)
{
#ifdef __SSE__
    return _mm_getcsr();
#else
    return 0;
#endif
}

static int threads(void)
{
#ifdef _OPENMP
    return omp_get_max_threads();
#else
    return 0;
#endif
}

static void name_file(int file, char path[512])
{
    char link[32];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t n = readlink(link, path, 511);
    path[n > 0 ? n : 0] = '\0';
}

/* Tell whether a file is one that a library keeps open: libffi 3.5, which ctypes calls, its own, and no child's;
 * on ARM one of torch's the processor's name, also without optplug. */
static int is_librarys(int file)
{
    char path[512];
    name_file(file, path);
#ifdef __aarch64__
    if (strstr(path, "/regs/identification/midr_el1"))
        return 1;
#endif
    return strstr(path, "/libffi.so") && (fcntl(file, F_GETFD) & FD_CLOEXEC);
}

static void look(struct state *now)
{
    memset(now, 0, sizeof *now);
    now->traps = traps();
    now->rounding = fegetround();
    now->exceptions = fetestexcept(FE_ALL_EXCEPT);
    now->sse = sse();
    now->threads = threads();
    snprintf(now->locale, sizeof now->locale, "%s", setlocale(LC_ALL, NULL));
    now->thread_locale = (void *)uselocale((locale_t)0);
    CHECK(getcwd(now->folder, sizeof now->folder) != NULL);
    size_t used = 0;
    for (char **variable = environ; *variable && used < sizeof now->variables; variable++)
        used += (size_t)snprintf(now->variables + used, sizeof now->variables - used, "%s\n", *variable);
    for (int i = 1; i < SIGNALS; i++)
        sigaction(i, NULL, &now->actions[i]);
    sigprocmask(SIG_SETMASK, NULL, &now->mask);
    sigaltstack(NULL, &now->signal_stack);
    now->umask = umask(0);
    umask(now->umask);
    for (int i = 0; i < FILES; i++)
        now->files[i] = is_librarys(i) ? -1 : fcntl(i, F_GETFD);
    now->offset = lseek(STDOUT_FILENO, 0, SEEK_CUR);
    now->priority = getpriority(PRIO_PROCESS, 0);
    const int limits[] = {RLIMIT_STACK, RLIMIT_CORE, RLIMIT_NOFILE, RLIMIT_AS};
    for (int i = 0; i < 4; i++)
        getrlimit(limits[i], &now->limits[i]);
    getitimer(ITIMER_REAL, &now->timer);
#ifdef __linux__
    FILE *const streams[] = {stdin, stdout, stderr};
    for (int i = 0; i < 3; i++) {
        now->buffers[2 * i] = __fbufsize(streams[i]);
        now->buffers[2 * i + 1] = (size_t)__flbf(streams[i]) << 32 | __fpending(streams[i]);
    }
    sched_getaffinity(0, sizeof now->processors, &now->processors);
    prctl(PR_GET_NAME, now->thread_name);
#endif
}

static struct state before;
static const char *doing;
static int first_of_42; /* of the host's random numbers */

#define SAME(field)                                                                                          \
    (memcmp(&now.field, &before.field, sizeof now.field) == 0                                                \
         ? (void)0                                                                                           \
         : (fprintf(check_log, "%s has changed the host's " #field "\n", doing), CHECK(!"as it was")))

static void name_changed_files(const struct state *now)
{
    for (int i = 0; i < FILES; i++) {
        char path[512];
        name_file(i, path);
        if (now->files[i] != before.files[i])
            fprintf(check_log, "file %d, '%s': %d was %d\n", i, path, now->files[i], before.files[i]);
    }
}

static void check_same(void)
{
    static struct state now;
    look(&now);
    name_changed_files(&now);
    SAME(traps);
    SAME(rounding);
    SAME(exceptions);
    SAME(sse);
    SAME(threads);
    SAME(locale);
    SAME(thread_locale);
    SAME(folder);
    SAME(variables);
    SAME(mask);
    SAME(signal_stack);
    SAME(umask);
    SAME(files);
    SAME(offset);
    SAME(buffers);
    SAME(priority);
    SAME(limits);
    SAME(timer);
#ifdef __linux__
    SAME(processors);
    SAME(thread_name);
#endif
    for (int i = 1; i < SIGNALS; i++) {
        SAME(actions[i].sa_handler);
        for (int j = 1; j < SIGNALS; j++) /* not memcmp: libc leaves the end of the mask as it comes */
            CHECK(sigismember(&now.actions[i].sa_mask, j) == sigismember(&before.actions[i].sa_mask, j));
        /* 0x04000000 is SA_RESTORER, which libc adds to what it is given. */
        CHECK(((now.actions[i].sa_flags ^ before.actions[i].sa_flags) & ~0x04000000) == 0);
    }
    CHECK(rand() == first_of_42);
}

#endif
