/* What the public functions have in common: the shield, the handle's lock, and the plan afterwards. */
#ifndef OPTPLUG_CALL_H
#define OPTPLUG_CALL_H

#include "runtime.h"
#include "shield.h"

struct slot;

struct call {
    struct shield saved;
    struct slot *slot;
    int opt, flags;
};

/* What a call on an optimizer may do or wants. */
enum {
    CHANGES_PLAN = 1,  /* may change what a plan has fixed */
    WANTS_ARRAYS = 2,  /* is refused where a parameter has none between steps */
    FROM_WITHIN = 4,   /* also in a function of the host's that this very optimizer has called */
    CALLS_BACK = 8,    /* Python may call a function of the host's */
    ENDS_HANDLE = 16,  /* all that a handle is good for whose function has been left */
    MAY_STAY_OUT = 32, /* may not need Python, and lets it know by itself where it does: call_tell_python */
};

/* The one table of what each does. */
enum {
    CALL_ATTRIBUTE = 0,
    CALL_ATTRIBUTE_GET = FROM_WITHIN,
    CALL_AVERAGE = CHANGES_PLAN,
    CALL_AVERAGE_GET = FROM_WITHIN,
    CALL_AVERAGE_SWAP = CHANGES_PLAN | WANTS_ARRAYS,
    CALL_BIND = CHANGES_PLAN,
    CALL_BIND_BLOCK = 0,
    CALL_CALL = CHANGES_PLAN | WANTS_ARRAYS,
    CALL_CHECKPOINT = 0,
    CALL_CHECK_GRADIENT = WANTS_ARRAYS | CALLS_BACK,
    CALL_CLIP_GRAD_NORM = FROM_WITHIN | WANTS_ARRAYS | CHANGES_PLAN | MAY_STAY_OUT, /* where Python does it */
    CALL_CLIP_GRAD_VALUE = FROM_WITHIN | WANTS_ARRAYS | CHANGES_PLAN | MAY_STAY_OUT,
    CALL_DESCRIBE = FROM_WITHIN,
    CALL_DISTRIBUTE = 0,
    CALL_FREE = ENDS_HANDLE | MAY_STAY_OUT,
    CALL_GET = FROM_WITHIN,
    CALL_GRAD_SCALE = CHANGES_PLAN,
    CALL_GROUP = CHANGES_PLAN,
    CALL_ITERATE = CHANGES_PLAN | WANTS_ARRAYS,
    CALL_LOAD = CHANGES_PLAN | CALLS_BACK,
    CALL_SAVE = 0,
    CALL_SCHEDULE = CHANGES_PLAN | CALLS_BACK,
    CALL_SCHEDULE_STEP = CHANGES_PLAN | CALLS_BACK | MAY_STAY_OUT,
    CALL_SET = CHANGES_PLAN,
    CALL_SET_VALUE = CHANGES_PLAN | MAY_STAY_OUT,           /* where Python does it */
    CALL_STEP = CHANGES_PLAN | MAY_STAY_OUT | WANTS_ARRAYS, /* where Python makes it */
    CALL_STEP_CLOSURE = CHANGES_PLAN | WANTS_ARRAYS | CALLS_BACK,
    CALL_STEP_STAGED = CHANGES_PLAN | MAY_STAY_OUT,
    CALL_STREAM = CHANGES_PLAN,
    CALL_ZERO_GRAD = FROM_WITHIN | WANTS_ARRAYS | MAY_STAY_OUT,
};

/* Begin a call on an optimizer: shield the host, lock the handle, see that Python is there. */
int call_begin(struct call *call, int opt, int flags);

/* End one, and return the status that a bridge function's result stands for.  Where it may have changed what
 * a plan has fixed, Python is asked for the plan that holds now. */
int call_end(struct call *call, int result);

/* Begin the call that makes a new optimizer, and return its handle; end it, without the handle if that fails.
 */
int call_begin_new(struct call *call);
int call_end_new(struct call *call, int result);

/* End the call that frees one. */
int call_end_last(struct call *call, int result);

/* Let Python know what has changed in the plan alone, before a call that may stay out comes to it: 1, or what
 * Python has returned. */
int call_tell_python(struct call *call);

/* Note that a call has changed nothing of the plan, and return 1, its result. */
int call_keeps_plan(struct call *call);

/* Make a step in a call that has begun: the plan's, or Python's. */
int call_step(struct call *call);

/* Set a hyperparameter in a call that has begun: in the plan alone, or by Python. */
int call_set_value(struct call *call, int group, const char *name, double value);

/* Begin and end a call on no optimizer; call_start starts Python where that is not done yet. */
void call_enter(struct shield *saved);
int call_start(struct shield *saved, const char *python);
int call_leave(const struct shield *saved, int result);

/* Return the text that Python has made in a call, NULL if that has failed. */
const char *call_text(int status);

#endif
