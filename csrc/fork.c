#include "fork.h"

#include <errno.h>
#include <pthread.h>

#include "arithmetic.h"
#include "handle.h"
#include "log.h"
#include "mkl.h"
#include "pyapi.h"
#include "runtime.h"

/* In a child the forking thread is alone, and what another thread had locked stays so.  Therefore it has
 * our locks and Python's when it forks, as far as they are to be had without waiting for a call to end;
 * what then is in another thread's hands is lost to the child, where it is an error. */
static _Thread_local struct {
    int starting; /* another thread starts Python: nothing is whole */
    int python;   /* we keep Python in order, whose own fork would do it itself */
    int cancel_state;
    PyGILState_STATE state;
} forking;

static void before_fork(void)
{
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &forking.cancel_state);
    int error_number = errno;
    struct arithmetic hosts;
    arithmetic_enter(&hosts);
    pthread_mutex_lock(&runtime.load_lock);
    forking.starting = pthread_mutex_trylock(&runtime.start_lock) != 0;
    forking.python =
        !forking.starting && runtime.ours && runtime.started && !runtime.ended && !pyapi_has_gil();
    if (forking.python) {
        forking.state = py.PyGILState_Ensure_();
        py.PyOS_BeforeFork_();
    }
    handle_before_fork();
    arithmetic_leave(&hosts);
    errno = error_number;
}

static void after_fork(int in_child)
{
    int error_number = errno;
    struct arithmetic hosts;
    arithmetic_enter(&hosts);
    handle_after_fork(in_child);
    if (forking.python) {
        (in_child ? py.PyOS_AfterFork_Child_ : py.PyOS_AfterFork_Parent_)();
        py.PyGILState_Release_(forking.state);
    }
    if (in_child) {
        runtime.torn = forking.starting;
        runtime.forked = runtime.started;
        if (runtime.forked)
            mkl_stay_alone();
        log_after_fork();
        pthread_mutex_init(&runtime.start_lock, NULL);
    } else if (!forking.starting)
        pthread_mutex_unlock(&runtime.start_lock);
    pthread_mutex_unlock(&runtime.load_lock);
    arithmetic_leave(&hosts);
    errno = error_number;
    pthread_setcancelstate(forking.cancel_state, NULL);
}

static void after_fork_in_parent(void) { after_fork(0); }

static void after_fork_in_child(void) { after_fork(1); }

void fork_watch(void) { pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child); }
