#include "shield.h"

#include <errno.h>
#include <pthread.h>

#include "log.h"
#include "openmp.h"
#include "pyapi.h"
#include "runtime.h"
#include "signals.h"
#include "torch.h"

static _Atomic int torch_threads;
static _Thread_local struct thread {
    int is_known;        /* torch and OpenMP have seen it */
    struct shield *call; /* what the innermost call has put aside */
} this_thread;

/* A host with floating-point traps, another rounding mode or flush-to-zero has them in its OpenMP workers
 * too, and torch shares those: there, torch keeps to this thread, which shield_enter has put in order.  So
 * it does in a forked child, which has no workers, though OpenMP waits for them.  Return why, or NULL. */
static const char *enter_openmp(const char *alone, int hosts_threads)
{
    if (!this_thread.is_known && runtime_is_up()) {
        /* torch sets the count itself, once a thread: let it, then overrule */
        if (!torch_enter_thread())
            runtime.python->enter_thread();
        this_thread.is_known = 1;
    }
    if (alone)
        openmp_set_threads(1);
    else if (!openmp_use_threads(torch_threads ? torch_threads : hosts_threads))
        alone = "cannot create others, by a limit on threads or memory";
    return alone;
}

void shield_interrupt(void)
{
    if (this_thread.call && this_thread.call->holds_interrupts)
        signals_note_interrupt();
}

void shield_enter(struct shield *saved)
{
    /* A thread that is cancelled in a call would take our locks and Python's along: so here or later. */
    pthread_testcancel();
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &saved->cancel_state);
    saved->error_number = errno;
    saved->alone = arithmetic_enter(&saved->arithmetic);
    if (!saved->alone && runtime.forked)
        saved->alone = "is that of a forked child";
    struct thread *me = &this_thread; /* which takes time to be found */
    if (!me->is_known)
        openmp_meet_thread();
    saved->openmp_threads = openmp_threads();
    if (saved->openmp_threads)
        saved->alone = enter_openmp(saved->alone, saved->openmp_threads);

    /* A caller that holds the GIL (ctypes.PyDLL) must not wait for our locks with it. */
    saved->interpreter_lock = pyapi_has_gil() ? py.PyEval_SaveThread_() : NULL;
    saved->holds_interrupts =
        !runtime.ours && runtime.started && signals_hold(&saved->interrupt, pyapi_address());
    saved->callback = NULL;
    saved->outer = me->call;
    me->call = saved;
}

/* With `ends` the call ends here, rather than calling a function of the host's. */
static void leave(const struct shield *saved, int ends)
{
    if (saved->holds_interrupts)
        signals_release(&saved->interrupt);
    if (saved->interpreter_lock)
        py.PyEval_RestoreThread_(saved->interpreter_lock);
    if (saved->openmp_threads)
        openmp_set_threads(saved->openmp_threads);
    arithmetic_leave(&saved->arithmetic);
    errno = saved->error_number;
    this_thread.call = saved->outer;
    if (ends && log_level && !saved->outer)
        log_deliver();
    if (saved->cancel_state != PTHREAD_CANCEL_DISABLE)
        pthread_setcancelstate(saved->cancel_state, NULL);
}

void shield_leave(const struct shield *saved) { leave(saved, 1); }

struct shield *shield_innermost(void) { return this_thread.call; }

/* An interpreter lock that the host came with is given back when its call ends, not here. */
void shield_suspend(struct shield *outside)
{
    struct shield *call = this_thread.call;
    *outside = *call;
    outside->interpreter_lock = NULL;
    leave(outside, 0);
    this_thread.call = call; /* the call around those that the function makes */
}

void shield_resume(struct shield *outside)
{
    struct shield *call = this_thread.call;
    shield_enter(outside);
    outside->interpreter_lock = call->interpreter_lock;
    outside->callback = call->callback;
    outside->outer = call->outer;
    *call = *outside;
    this_thread.call = call;
}

void shield_set_threads(int count) { torch_threads = count; }
