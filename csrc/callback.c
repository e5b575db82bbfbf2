/* A function that is left takes along all frames between it and the one that it is left for, and nothing of
 * ours runs then.  Its frame is missed at the thread's next call, which comes from above it or finds other
 * things in its place, and where there is none, at the thread's end. */
#define _GNU_SOURCE
#include "callback.h"

#include <pthread.h>
#include <stdlib.h>
#include <sys/resource.h>

#include "error.h"
#include "handle.h"
#include "optplug.h"
#include "pyapi.h"
#include "runtime.h"
#include "shield.h"
#include "signals.h"

/* What a frame of Python's puts back when it ends. */
struct frames {
    PyThreadState *thread;
    int gilstate_counter;
    _PyErr_StackItem *exc_info;
#if PY_VERSION_HEX >= 0x030D0000
    struct _PyInterpreterFrame *current_frame;
#elif PY_VERSION_HEX >= 0x030B0000
    _PyCFrame *cframe;
#else
    CFrame *cframe;
    PyFrameObject *frame;
#endif
#if PY_VERSION_HEX >= 0x030B0000
    _PyStackChunk *datastack_chunk;
    PyObject **datastack_top, **datastack_limit;
#endif
#if PY_VERSION_HEX >= 0x030C0000 && PY_VERSION_HEX < 0x030E0000
    int c_recursion;
#endif
    int recursion;
};

#if PY_VERSION_HEX >= 0x030C0000
#define RECURSION py_recursion_remaining
#elif PY_VERSION_HEX >= 0x030B0000
#define RECURSION recursion_remaining
#else
#define RECURSION recursion_depth
#endif

/* A call whose function of the host's may be left: in its slot, since the call's own frame goes with it. */
struct callback {
    struct slot *slot;
    struct shield *around;    /* the call in whose function this one was made */
    struct callback *next;    /* the same */
    struct frames frames;     /* of Python's, when the call began */
    volatile uint64_t *marks; /* in the frame that has called the function */
    uint64_t mark;
};

enum { MARKS = 32, PYTHON_FRAMES = 250, STACK = 64 * 1024 };

static _Thread_local struct callback *innermost; /* whose function runs */
static _Thread_local struct {
    int known;
    uintptr_t low, high;
} stack; /* of this thread */

static void take(struct frames *frames, PyThreadState *thread)
{
    frames->thread = thread;
    frames->gilstate_counter = thread->gilstate_counter;
    frames->exc_info = thread->exc_info;
#if PY_VERSION_HEX >= 0x030D0000
    frames->current_frame = thread->current_frame;
#else
    frames->cframe = thread->cframe;
#endif
#if PY_VERSION_HEX >= 0x030B0000
    frames->datastack_chunk = thread->datastack_chunk;
    frames->datastack_top = thread->datastack_top;
    frames->datastack_limit = thread->datastack_limit;
#else
    frames->frame = thread->frame;
#endif
#if PY_VERSION_HEX >= 0x030C0000 && PY_VERSION_HEX < 0x030E0000
    frames->c_recursion = thread->c_recursion_remaining;
#endif
    frames->recursion = thread->RECURSION;
}

/* What the frames in between hold stays in memory: nobody knows it any more. */
static void put(const struct frames *frames)
{
    PyThreadState *thread = frames->thread;
    if (!thread || thread != pyapi_thread_state())
        return;
    thread->gilstate_counter = frames->gilstate_counter;
    thread->exc_info = frames->exc_info;
#if PY_VERSION_HEX >= 0x030D0000
    thread->current_frame = frames->current_frame;
#else
    thread->cframe = frames->cframe;
#endif
#if PY_VERSION_HEX >= 0x030B0000
    thread->datastack_chunk = frames->datastack_chunk;
    thread->datastack_top = frames->datastack_top;
    thread->datastack_limit = frames->datastack_limit;
#else
    thread->frame = frames->frame;
#endif
#if PY_VERSION_HEX >= 0x030C0000 && PY_VERSION_HEX < 0x030E0000
    thread->c_recursion_remaining = frames->c_recursion;
#endif
    thread->RECURSION = frames->recursion;
}

/* Give the innermost call up. */
static void give_up(void)
{
    struct callback *left = innermost;
    innermost = left->next;
    put(&left->frames);
    handle_leave(left->slot);
}

static pthread_key_t key;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void thread_ends(void *unused)
{
    (void)unused;
    while (innermost)
        give_up();
}

static void make_key(void) { pthread_key_create(&key, thread_ends); }

static void find_stack(void)
{
    stack.known = 1;
#ifdef __APPLE__
    stack.high = (uintptr_t)pthread_get_stackaddr_np(pthread_self());
    stack.low = stack.high - pthread_get_stacksize_np(pthread_self());
#else
    pthread_attr_t attributes;
    void *low;
    size_t size;
    if (pthread_getattr_np(pthread_self(), &attributes) != 0)
        return;
    if (pthread_attr_getstack(&attributes, &low, &size) == 0) {
        stack.low = (uintptr_t)low;
        stack.high = stack.low + size;
    }
    pthread_attr_destroy(&attributes);
#endif
#ifndef __GLIBC__
    /* musl, and old versions of macOS, tell less of the first thread's than it can grow to. */
    struct rlimit most;
    if (signals_is_main_thread() && getrlimit(RLIMIT_STACK, &most) == 0 && most.rlim_cur < stack.high &&
        stack.high - most.rlim_cur < stack.low)
        stack.low = stack.high - (uintptr_t)most.rlim_cur;
#endif
}

/* A coroutine has a stack of its own, of which nothing can be said. */
static int is_on_stack(uintptr_t address) { return stack.low <= address && address < stack.high; }

/* Tell whether the frame that has called a function is gone. */
#if defined __GNUC__
__attribute__((noinline, no_sanitize("address", "thread")))
#endif
static int is_left(const struct callback *callback)
{
    uintptr_t here = (uintptr_t)__builtin_frame_address(0), there = (uintptr_t)callback->marks;
    if (!is_on_stack(here) || !is_on_stack(there))
        return 0;
    if (here > there)
        return 1;
    for (int i = 0; i < MARKS; i++)
        if (callback->marks[i] != callback->mark)
            return 1;
    return 0;
}

struct shield *callback_sweep(struct shield *state)
{
    const struct callback *last = NULL;
    for (const struct callback *c = innermost; c; c = c->next)
        if (is_left(c))
            last = c; /* and with it those that were called in its function */
    if (!last)
        return state;
    state = last->around;
    for (const struct callback *end = last->next; innermost != end;)
        give_up();
    return state;
}

void callback_expect(struct shield *call, struct slot *slot)
{
    struct callback *callback = handle_callback(slot);
    if (!callback) {
        callback = calloc(1, sizeof *callback);
        handle_set_callback(slot, callback);
    }
    call->callback = callback;
    if (!callback)
        return;
    callback->slot = slot;
    callback->around = call->outer;
    if (!pyapi_thread_state())
        runtime.python->enter_thread(); /* cffi makes one, and keeps it */
    callback->frames.thread = NULL;
    if (pyapi_thread_state())
        take(&callback->frames, pyapi_thread_state());
    if (!stack.known)
        find_stack();
    pthread_once(&once, make_key);
    pthread_setspecific(key, callback);
}

int callback_run(optplug_callback function, void *user, double *value)
{
    volatile uint64_t marks[MARKS];
    struct callback *callback = shield_innermost()->callback;
    if (callback) {
        callback->mark = (uint64_t)(uintptr_t)marks ^ (uint64_t)(uintptr_t)callback ^ 0x6F7074706C7567;
        for (int i = 0; i < MARKS; i++)
            marks[i] = callback->mark;
        callback->marks = marks;
        callback->next = innermost;
        innermost = callback;
    }
    struct shield outside;
    shield_suspend(&outside);
    int status = function(user, value);
    shield_resume(&outside); /* where the thread may be cancelled */
    callback_sweep(NULL);    /* functions that it has called, and that were left within it */
    if (callback)
        innermost = callback->next;
    return status;
}

int callback_room(void)
{
    if (!innermost)
        return OPT_OK;
    int depth = 0;
    for (const struct callback *c = innermost; c; c = c->next)
        depth++;
    uintptr_t here = (uintptr_t)__builtin_frame_address(0);
    const PyThreadState *thread = pyapi_thread_state();
#if PY_VERSION_HEX >= 0x030B0000
    int frames = thread ? thread->RECURSION : PYTHON_FRAMES;
#else
    int frames = 1000 - (thread ? thread->RECURSION : 0); /* of Python's usual limit */
#endif
    int has_stack = !is_on_stack(here) || here - stack.low >= STACK;
    if (frames >= PYTHON_FRAMES && has_stack)
        return OPT_OK;
    return fail(OPT_ESTATE, "callbacks are nested too deeply (%d): %s is full", depth,
                has_stack ? "Python's stack" : "this thread's stack");
}
