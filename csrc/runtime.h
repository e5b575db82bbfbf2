/* What the process's Python is to us: whose it is, how far its start has come, and what the bridge does. */
#ifndef OPTPLUG_RUNTIME_H
#define OPTPLUG_RUNTIME_H

#include <pthread.h>

#include "bridge.h"

extern struct runtime {
    const optplug_python *_Atomic python; /* attached; a Python host may do that before any start */
    _Atomic int ours;                     /* we started Python, rather than borrowed it */
    _Atomic int keeps_apart;              /* torch finds its own libraries before the host's */
    _Atomic int started;
    _Atomic int ended;  /* Python is gone, or the process about to go */
    _Atomic int forked; /* we are the child of a process that had started */
    _Atomic int torn;   /* ... or that was about to, in another thread */

    /* Two locks, because the first one's owner never wants the GIL: a thread that comes with the GIL can
     * take it, then let go of the GIL and queue for the second. */
    pthread_mutex_t load_lock, start_lock;
} runtime;

/* Tell whether Python and the bridge are there to be called. */
int runtime_is_up(void);

/* Fail before the start, and after Python has ended. */
int runtime_check(void);

#endif
