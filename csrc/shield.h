/* The shield around every call: what the host has, put aside for Python and torch and put back as it was. */
#ifndef OPTPLUG_SHIELD_H
#define OPTPLUG_SHIELD_H

#include <signal.h>

#include "arithmetic.h"

struct callback;

/* What a call must put back. */
struct shield {
    int error_number;
    struct arithmetic arithmetic;
    int openmp_threads;
    const char *alone; /* why torch has this thread only; NULL otherwise */
    void *interpreter_lock;
    int cancel_state;
    int holds_interrupts; /* and this is what the host does about them */
    struct sigaction interrupt;
    struct shield *outer;      /* of the call around, where a function of the host's calls us */
    struct callback *callback; /* what callback.c has of the call */
};

/* Shield the host from Python and torch; shield_leave puts everything back.  Cheap, cannot fail, and the pair
 * stands around all that a call does. */
void shield_enter(struct shield *saved);
void shield_leave(const struct shield *saved);

/* Return this thread's innermost call. */
struct shield *shield_innermost(void);

/* Put back what that has put aside, for a function of the host's; shield_resume puts it aside again, as the
 * function has left it. */
void shield_suspend(struct shield *outside);
void shield_resume(struct shield *outside);

/* Give the host, after the call, an interrupt that came before it and that Python has noticed in it. */
void shield_interrupt(void);

/* Let torch use so many threads, rather than as many as the host's OpenMP does. */
void shield_set_threads(int count);

#endif
