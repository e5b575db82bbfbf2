#include "call.h"

#include "callback.h"
#include "error.h"
#include "handle.h"
#include "optplug.h"
#include "plan.h"
#include "rates.h"
#include "staging.h"
#include "start.h"

/* Turn what a bridge function returned into a status. */
static int translate(int result)
{
    if (result == 0)
        return fail(OPT_ERUNTIME, "optplug's Python could not run the call, and left no message");
    return result > 0 ? OPT_OK : result;
}

/* ---- on no optimizer ---- */

void call_enter(struct shield *saved)
{
    shield_enter(saved);
    if (saved->outer)
        saved->outer = callback_sweep(saved->outer);
}

int call_start(struct shield *saved, const char *python)
{
    int status = start_python(python);
    if (status < 0)
        return status;
    call_enter(saved);
    status = callback_room();
    if (status < 0)
        shield_leave(saved);
    return status;
}

int call_leave(const struct shield *saved, int result)
{
    int status = translate(result);
    shield_leave(saved);
    return status;
}

const char *call_text(int status)
{
    const char *text = status < 0 ? NULL : text_get();
    if (status >= 0 && !text)
        fail(OPT_ENOMEM, "out of memory");
    return text;
}

/* ---- on an optimizer ---- */

static int check_arrays(struct slot *slot)
{
    const char *name = staging_first(handle_staging(slot));
    return !name ? OPT_OK
                 : fail(OPT_ESTATE,
                        "parameter '%.200s' has arrays only during opt_step_f64 and opt_step_f32: bind it to "
                        "arrays first",
                        name);
}

int call_tell_python(struct call *call)
{
    struct plan *plan = handle_plan(call->slot);
    if (!plan_is_ahead(plan))
        return 1;
    for (struct rate *r; (r = plan_unknown(plan)); r->change = 0) {
        int result = runtime.python->take_value(call->opt, r->group, r->name, r->value);
        if (result <= 0)
            return result;
    }
    if (plan_has_moved(plan)) {
        int result = runtime.python->take_numbers(call->opt);
        if (result <= 0)
            return result;
        plan_is_taken(plan);
    }
    return 1;
}

int call_begin(struct call *call, int opt, int flags)
{
    call->opt = opt;
    call->flags = flags;
    call_enter(&call->saved);
    int status = handle_lock(opt,
                             flags & ENDS_HANDLE   ? HANDLE_FREE
                             : flags & FROM_WITHIN ? HANDLE_ASK
                                                   : HANDLE_CHANGE,
                             &call->slot);
    if (status == OPT_OK) {
        status = call->saved.outer ? callback_room() : OPT_OK;
        if (status == OPT_OK)
            status = runtime_check();
        if (status == OPT_OK && flags & WANTS_ARRAYS)
            status = check_arrays(call->slot);
        if (status == OPT_OK && !(flags & MAY_STAY_OUT))
            status = translate(call_tell_python(call));
        if (status < 0)
            handle_unlock(call->slot);
    }
    if (status < 0)
        shield_leave(&call->saved);
    else if (flags & CALLS_BACK)
        callback_expect(&call->saved, call->slot);
    return status;
}

/* Let the handle have the plan that Python states now, after a call of this result.  An interrupt in Python
 * then leaves no plan behind that steps arrays of before. */
static void update_plan(struct call *call, int result)
{
    struct plan *plan = handle_plan(call->slot);
    if (plan_is_ahead(plan))
        return; /* the call has not come as far as to Python */
    optplug_plan stated = {0};
    if (result == 1 || runtime.python->plan(call->opt, plan_serial(plan), &stated) != 1 || stated.count == 0)
        handle_set_plan(call->slot, NULL);
    else if (!stated.operators)
        plan_set_scalars(plan, &stated);
    else {
        int borrowed = !runtime.ours;
        int stable = stated.stable < 0 ? borrowed : stated.stable;
        handle_set_plan(call->slot, plan_new(&stated, stable, borrowed));
        if (!handle_plan(call->slot))
            runtime.python->plan_refused(call->opt, 0);
    }
}

int call_keeps_plan(struct call *call)
{
    call->flags &= ~CHANGES_PLAN;
    return 1;
}

int call_step(struct call *call)
{
    struct plan *plan = handle_plan(call->slot);
    int result = plan ? plan_run(plan, callback_collective) : 0;
    if (plan_has_failed(plan))
        runtime.python->plan_refused(call->opt, 1);
    if (result == 0) {
        result = call_tell_python(call);
        return result > 0 ? runtime.python->step(call->opt) : result;
    }
    call_keeps_plan(call);
    if (result > 0)
        handle_count_step(call->slot);
    else if (plan_has_failed(plan) && call_tell_python(call) > 0)
        handle_set_plan(call->slot, NULL);
    return result;
}

int call_set_value(struct call *call, int group, const char *name, double value)
{
    if (plan_set_value(handle_plan(call->slot), group, name, value))
        return call_keeps_plan(call);
    int result = call_tell_python(call);
    return result > 0 ? runtime.python->set_value(call->opt, group, name, value) : result;
}

int call_end(struct call *call, int result)
{
    if (call->flags & CHANGES_PLAN)
        update_plan(call, result);
    int status = translate(result);
    handle_unlock(call->slot);
    shield_leave(&call->saved);
    return status;
}

int call_begin_new(struct call *call)
{
    int status = call_start(&call->saved, NULL);
    if (status < 0)
        return status;
    int opt = handle_new(&call->slot);
    if (opt < 0)
        shield_leave(&call->saved);
    return opt;
}

int call_end_new(struct call *call, int result)
{
    int status = translate(result);
    (status < 0 ? handle_retire : handle_unlock)(call->slot);
    shield_leave(&call->saved);
    return status;
}

int call_end_last(struct call *call, int result)
{
    int status = translate(result);
    handle_retire(call->slot);
    shield_leave(&call->saved);
    return status;
}
