/* The process that we are guests in: its Python, started or borrowed, and its state, left as found. */
#ifndef OPTPLUG_HOST_H
#define OPTPLUG_HOST_H

#include <fenv.h>
#include <signal.h>
#include <stddef.h>

#include "bridge.h"

struct callback;

/* What a call must put back. */
struct host_state {
    int error_number;
    int usual_arithmetic; /* what is in the next three lines is enough */
    unsigned mxcsr;
    unsigned short x87_control, x87_status;
    fenv_t floating_point;
    int openmp_threads;
    void *interpreter_lock;
    int cancel_state;
    int holds_interrupts; /* and this is what the host does about them */
    struct sigaction interrupt;
    struct host_state *outer;  /* of the call around, where a function of the host's calls us */
    struct callback *callback; /* what callback.c has of the call */
};

/* Shield the host from Python and torch; host_leave puts everything back.  Cheap, cannot fail, and
 * the pair stands around all that a call does. */
void host_enter(struct host_state *saved);
void host_leave(const struct host_state *saved);

/* Return this thread's innermost call. */
struct host_state *host_call(void);

/* Put back what that has put aside, for a function of the host's; host_resume puts it aside again, as the
 * function has left it. */
void host_suspend(struct host_state *outside);
void host_resume(struct host_state *outside);

/* Return what Python has of this thread, a PyThreadState; NULL for nothing. */
void *host_thread_state(void);

/* Start Python, or borrow the one that runs, and import the bridge.  `python` is the interpreter to
 * use, or NULL.  Does nothing when that is done already. */
int host_start(const char *python);

/* Check that Python is there: fails before the start and after Python has ended. */
int host_running(void);

/* Return this thread's OpenMP count, having set it if `count` is positive; 0 where there is no OpenMP.
 * host_leave puts the host's back. */
int host_thread_count(int count);

/* Clear an exception of Python's that torch's C functions have left in this thread. */
void host_clear_exception(void);

/* Return the bridge's functions.  Only after host_running() or host_start() said OPT_OK. */
const optplug_python *host_python(void);

/* Describe the library and its start, a "name: value" a line; nonzero if Python has more to say. */
int host_describe(char *text, size_t size);

#endif
