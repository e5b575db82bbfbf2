/* What C does for Python: the table of functions that the bridge gets when it attaches itself. */
#include "bridge.h"

#include <string.h>

#include "callback.h"
#include "elementwise.h"
#include "end.h"
#include "error.h"
#include "gradients.h"
#include "handle.h"
#include "holdings.h"
#include "loans.h"
#include "log.h"
#include "lying.h"
#include "openmp.h"
#include "optplug.h"
#include "plan.h"
#include "rows.h"
#include "runtime.h"
#include "shield.h"
#include "torch.h"

static int thread_count(int count)
{
    if (count > 0 && openmp_threads() > 0)
        openmp_use_threads(count);
    return openmp_threads();
}

static int64_t take_steps(int opt)
{
    struct slot *slot;
    if (handle_lock(opt, HANDLE_ASK, &slot) < 0)
        return 0;
    int64_t steps = handle_take_steps(slot);
    handle_unlock(slot);
    return steps;
}

static int run_plan(const optplug_plan *stated)
{
    int threads =
        openmp_threads(); /* as the step has them that this goes before: its last bits may go by it */
    struct plan *plan = plan_new(stated, stated->stable, 0);
    int done = plan && plan_run(plan, callback_collective) == 1;
    plan_free(plan);
    if (threads > 0)
        openmp_use_threads(threads);
    return done;
}

static int clip_grad_norm(const optplug_gradients *stated, double max_norm, double *total_norm)
{
    struct gradients *gradients = gradients_make(stated);
    int done = gradients_clip_norm(gradients, max_norm, total_norm);
    gradients_free(gradients);
    return done;
}

static int log_wanted(void) { return log_level; }

static void tell(int level, const char *line) { log_line(level, "%s", line); }

static int change_log_level(int level)
{
    if (level >= 0)
        log_set_level(level);
    return log_function_level();
}

__attribute__((visibility("default"))) const optplug_host *optplug_attach(const optplug_python *python,
                                                                          const char *version)
{
    static const optplug_host host = {
        .record = error_record,
        .warn = warning_add,
        .text = text_set,
        .call = callback_run,
        .collective = callback_collective,
        .threads = shield_set_threads,
        .thread_count = thread_count,
        .end = end_calls,
        .interrupt = shield_interrupt,
        .open_torch = torch_open,
        .elementwise = elementwise_run,
        .run_plan = run_plan,
        .dot = rows_dot,
        .largest = rows_largest,
        .take = rows_take,
        .put = rows_put,
        .move = rows_move,
        .note = holdings_note,
        .forget = holdings_forget,
        .look = lying_look,
        .lend = loans_lend,
        .take_back = loans_take_back,
        .multiply = rows_multiply,
        .clip_grad_norm = clip_grad_norm,
        .take_steps = take_steps,
        .log_wanted = log_wanted,
        .log = tell,
        .log_level = change_log_level,
    };
    if (strcmp(version, OPTPLUG_VERSION) != 0)
        return NULL;
    runtime.python = python;
    return &host;
}
