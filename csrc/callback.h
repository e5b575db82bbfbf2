/* Functions of the host's: called with the host's own state around them, and noticed where they do not come
 * back, since an exception, longjmp, pthread_exit or pthread_cancel has left them. */
#ifndef OPTPLUG_CALLBACK_H
#define OPTPLUG_CALLBACK_H

#include "bridge.h"

struct callback;
struct shield;
struct slot;

/* Note where this thread's Python is, in a call that may call a function of the host's: one that is left
 * leaves Python's frames behind.  `call` is what shield_enter has filled in; its slot is locked. */
void callback_expect(struct shield *call, struct slot *slot);

/* Call a function of the host's.  Python, which calls this, has let go of the GIL. */
int callback_run(optplug_callback function, void *user, double *value);

/* Call a collective of the host's so. */
int callback_collective(optplug_collective function, void *user, const char *what, const char *dtype,
                        const void *send, void *receive, int64_t count);

/* Return the call in which this thread is, having given up those whose function has been left: their handles
 * are good for opt_free alone.  NULL: none. */
struct shield *callback_sweep(struct shield *innermost);

/* Check that a function of the host's, if this thread is in one, may call us: Python's stack and the
 * thread's end. */
int callback_room(void);

#endif
