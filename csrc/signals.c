#define _GNU_SOURCE
#include "signals.h"

#include <dlfcn.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

static int is_pythons(void (*handler)(int), const void *python)
{
    static void (*_Atomic known)(int);
    Dl_info pythons, its;
    if (handler == SIG_DFL || handler == SIG_IGN)
        return 0;
    if (handler == known)
        return 1;
    if (!dladdr(python, &pythons) || !dladdr((void *)(intptr_t)handler, &its) ||
        its.dli_fbase != pythons.dli_fbase)
        return 0;
    known = handler;
    return 1;
}

/* ---- the start ---- */

void signals_save(struct sigaction actions[NSIG])
{
    for (int i = 1; i < NSIG; i++)
        sigaction(i, NULL, &actions[i]);
}

/* Another thread of the host's may have installed handlers meanwhile, and may do so now. */
void signals_restore(const struct sigaction actions[NSIG], const void *python)
{
    for (int i = 1; i < NSIG; i++) {
        struct sigaction now;
        if (sigaction(i, NULL, &now) == 0 && is_pythons(now.sa_handler, python) &&
            !is_pythons(actions[i].sa_handler, python) && sigaction(i, &actions[i], &now) == 0 &&
            !is_pythons(now.sa_handler, python))
            sigaction(i, &now, NULL);
    }
}

int signals_make_thread(pthread_t *thread, void *(*function)(void *), void *argument)
{
    sigset_t all, hosts;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &hosts);
    int error = pthread_create(thread, NULL, function, argument);
    pthread_sigmask(SIG_SETMASK, &hosts, NULL);
    return error;
}

/* ---- every call ---- */

/* In a Python host Ctrl-C raises KeyboardInterrupt wherever its main thread is, and so in the middle of a
 * step, which it would leave half made.  As with any function that is written in C it waits: for the end
 * of the call, or for a function of the host's. */
static volatile sig_atomic_t interrupted;

static void note_interrupt(int number) { interrupted = number; }

void signals_note_interrupt(void) { interrupted = SIGINT; }

int signals_is_main_thread(void)
{
#ifdef __linux__
    static _Thread_local int known; /* 1: yes, -1: no */
    if (!known)
        known = syscall(SYS_gettid) == getpid() ? 1 : -1;
    return known > 0;
#else
    return pthread_main_np();
#endif
}

int signals_hold(struct sigaction *hosts, const void *python)
{
    if (!signals_is_main_thread() || sigaction(SIGINT, NULL, hosts) < 0 ||
        !is_pythons(hosts->sa_handler, python))
        return 0;
    struct sigaction note = *hosts;
    note.sa_handler = note_interrupt;
    return sigaction(SIGINT, &note, NULL) == 0;
}

void signals_release(const struct sigaction *hosts)
{
    sigaction(SIGINT, hosts, NULL);
    if (interrupted) {
        interrupted = 0;
        raise(SIGINT);
    }
}
