/* What is registered for the process's end runs in turn, the last first: what torch's libraries have
 * registered would run while they are still being imported.  So we register ourselves again and again. */
#define _GNU_SOURCE
#include "early_end.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "signals.h"

static _Atomic enum { OVER, BEGUN, WITH_PYTHON } state;
static pthread_t starter;
static pid_t process; /* a forked one has no such thread */
static void (*give_up)(void), (*stop_python)(void);

static void end_start(void)
{
    const struct timespec millisecond = {0, 1000000};
    static int done;
    if (done || state == OVER || process != getpid() || pthread_equal(starter, pthread_self()))
        return;
    done = 1;
    give_up();
    for (int i = 0; i < 60000 && state == BEGUN; i++)
        nanosleep(&millisecond, NULL);
    if (state == WITH_PYTHON)
        stop_python();
}

void early_end_watch(void (*give_up_)(void), void (*stop_python_)(void))
{
    starter = pthread_self();
    process = getpid();
    give_up = give_up_;
    stop_python = stop_python_;
    state = BEGUN;
    atexit(end_start);
}

void early_end_python_runs(void) { state = WITH_PYTHON; }

/* ---- staying the last one ---- */

static void stay_last(void)
{
    static struct timespec last;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    if ((now.tv_sec - last.tv_sec) * 1000 + (now.tv_nsec - last.tv_nsec) / 1000000 >= 10) {
        atexit(end_start);
        last = now;
    }
}

/* torch's libraries register thousands of things while they are loaded, in half a second. */
static _Atomic int is_loading;
static pthread_t helper;

static void *stay_last_while_loading(void *unused)
{
    const struct timespec moment = {0, 500000};
    while (is_loading) {
        atexit(end_start);
        nanosleep(&moment, NULL);
    }
    return unused;
}

static void begin_loading(void)
{
    is_loading = 1;
    is_loading = signals_make_thread(&helper, stay_last_while_loading, NULL) == 0;
}

static void end_loading(void)
{
    if (!is_loading)
        return;
    is_loading = 0;
    pthread_join(helper, NULL);
}

void early_end_imports(const char *module)
{
    end_loading();
    stay_last();
    if (module && strcmp(module, "torch._C") == 0)
        begin_loading();
}

void early_end_unwatch(void)
{
    end_loading();
    state = OVER;
}
