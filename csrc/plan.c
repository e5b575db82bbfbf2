#include "plan.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "error.h"
#include "gradients.h"
#include "openmp.h"
#include "operation.h"
#include "optplug.h"
#include "pyapi.h"
#include "rates.h"
#include "schedule.h"

struct plan {
    int64_t serial; /* of the statement that it was made from */
    pid_t process;  /* that has made it */
    int on_gpu;
    int minds_modes; /* of PyTorch's, that a host may have on */
    int8_t default_dtype;
    int moves;  /* whether steps move numbers that Python keeps, ... */
    int moved;  /* ... and have since it has taken them */
    int proven; /* has run boxed, which turns torch's exceptions into errors */
    int failed; /* torch has failed in it: Python makes the steps from now on */
    struct gradients *gradients;
    struct ranks *ranks;
    struct rates rates;
    struct schedule *schedule;
    int count;
    struct operation operations[];
};

/* Return where all scalars are, one operation's after the other's; NULL if there is no memory. */
static double **find_scalars(struct plan *plan)
{
    int count = 0;
    for (int i = 0; i < plan->count; i++)
        count += operation_scalar_count(&plan->operations[i]);
    double **scalars = calloc((size_t)count + 1, sizeof *scalars);
    count = 0;
    for (int i = 0; scalars && i < plan->count; i++)
        for (int j = 0; j < operation_scalar_count(&plan->operations[i]); j++)
            scalars[count++] = &plan->operations[i].scalars[j];
    return scalars;
}

/* Take over which scalars may change, as stated; with the operators, also how schedulers do that. */
static void take_changes(struct plan *plan, const optplug_plan *stated)
{
    rates_free(&plan->rates);
    if (stated->rate_count == 0 && !stated->schedulers.steps)
        return;
    double **scalars = find_scalars(plan);
    if (!scalars)
        return;
    rates_take(&plan->rates, stated, scalars);
    if (stated->operators)
        plan->schedule = schedule_make(&stated->schedulers, scalars);
    free(scalars);
}

static int take_ranks(struct plan *plan, const optplug_ranks *stated)
{
    double **scalars = find_scalars(plan);
    plan->ranks = scalars ? ranks_make(stated, scalars) : NULL;
    free(scalars);
    return plan->ranks != NULL;
}

struct plan *plan_new(const optplug_plan *stated, int stable, int minds_modes)
{
    struct plan *plan = calloc(1, sizeof *plan + (size_t)stated->count * sizeof *plan->operations);
    if (!plan)
        return NULL;
    plan->serial = stated->serial;
    plan->count = stated->count;
    plan->process = getpid();
    plan->minds_modes = minds_modes;
    plan->moves = stated->moves;
    plan->default_dtype = torch.default_dtype ? torch.default_dtype() : 0;
    plan->gradients = gradients_make(&stated->gradients);
    const double *scalars = stated->scalars;
    for (int i = 0; i < stated->count; i++) {
        const optplug_operator *given = &stated->operators[i];
        plan->on_gpu |= given->gpu >= 0;
        if (!operation_make(&plan->operations[i], given, scalars, stable)) {
            plan_free(plan);
            return NULL;
        }
        scalars += given->doubles + given->bools;
    }
    take_changes(plan, stated);
    if (stated->ranks.size > 0 && !take_ranks(plan, &stated->ranks)) {
        plan_free(plan);
        return NULL;
    }
    return plan;
}

void plan_free(struct plan *plan)
{
    for (int i = 0; plan && i < plan->count; i++)
        operation_free(&plan->operations[i]);
    if (plan) {
        gradients_free(plan->gradients);
        ranks_free(plan->ranks);
        rates_free(&plan->rates);
        schedule_free(plan->schedule);
    }
    free(plan);
}

int64_t plan_serial(const struct plan *plan) { return plan ? plan->serial : 0; }

void plan_set_scalars(struct plan *plan, const optplug_plan *stated)
{
    const double *scalars = stated->scalars;
    for (int i = 0; i < plan->count; i++) {
        operation_set_scalars(&plan->operations[i], scalars);
        scalars += operation_scalar_count(&plan->operations[i]);
    }
    take_changes(plan, stated);
}

/* Tell whether PyTorch computes otherwise now: modes are on that Python puts aside, such as a host's
 * FakeTensorMode, or the default dtype is another than that of the step that the plan was made from. */
static int is_in_mode(const struct plan *plan)
{
    return plan->minds_modes && ((torch.any_modes_set && torch.any_modes_set(false)) ||
                                 (torch.default_dtype && torch.default_dtype() != plan->default_dtype));
}

const struct gradients *plan_gradients(const struct plan *plan)
{
    return plan && !is_in_mode(plan) ? plan->gradients : NULL;
}

struct ranks *plan_ranks(const struct plan *plan) { return plan ? plan->ranks : NULL; }

int plan_set_value(struct plan *plan, int group, const char *name, double value)
{
    return plan && rates_set(&plan->rates, group, name, value);
}

struct rate *plan_unknown(const struct plan *plan) { return plan ? rates_unknown(&plan->rates) : NULL; }

int plan_step_schedule(struct plan *plan)
{
    return plan && !is_in_mode(plan) && schedule_step(plan->schedule);
}

int plan_has_moved(const struct plan *plan) { return plan->moved || schedule_is_ahead(plan->schedule); }

void plan_is_taken(struct plan *plan)
{
    plan->moved = 0;
    schedule_is_known(plan->schedule);
}

int plan_has_failed(const struct plan *plan) { return plan && plan->failed; }

const char *plan_way(const struct plan *plan)
{
    const char *way = plan ? "recorded" : "Python";
    for (int i = 0; plan && i < plan->count; i++)
        if (!plan->operations[i].records)
            way = !plan->operations[i].entry || strcmp(way, "stable") == 0 ? "stable" : "direct";
    return way;
}

int plan_is_ahead(const struct plan *plan)
{
    return plan && (rates_unknown(&plan->rates) || plan_has_moved(plan));
}

/* Tell whether so much memory can be had: where it runs out in torch's own functions, they end the process. */
static int has_room(size_t size)
{
    void *volatile memory = malloc(size); /* which no compiler leaves out */
    free(memory);
    return memory != NULL;
}

int plan_run(struct plan *plan, collective_caller call)
{
    if (plan->on_gpu && getpid() != plan->process)
        return 0; /* Python says that no GPU survives a fork */
    if (is_in_mode(plan))
        return 0;
    size_t room = 0;
    for (int i = 0; i < plan->count; i++) {
        if (!operation_prepare(&plan->operations[i]))
            return 0; /* Python says whose gradient it is, or takes another branch */
        size_t its = operation_room(&plan->operations[i], plan->proven);
        room = its > room ? its : room;
    }
    if (room > 0 && !has_room(room))
        return plan->ranks
                   ? 0 /* the other ranks wait: let Python try */
                   : fail(OPT_ENOMEM,
                          "out of memory: a step needs %zu bytes more while it runs: free some, or raise "
                          "the limit (ulimit -v)",
                          room);
    int status = plan->ranks ? ranks_reduce(plan->ranks, call) : 1;
    if (status <= 0)
        return status;
    int threads = openmp_threads();
    for (int i = 0; i < plan->count; i++) {
        const struct operation *operation = &plan->operations[i];
        if (threads > 0)
            openmp_use_threads(operation->form.alone ? 1 : threads);
        if (operation_run(operation, plan->proven))
            continue;
        pyapi_clear_exception();
        plan->failed = 1;
        if (i == 0 && !plan->on_gpu)
            return 0; /* nothing has changed yet */
        if (plan->ranks)
            return ranks_publish(plan->ranks, call, 1);
        /* There was memory, and it has run before, on copies.  So it is an error of a GPU's, which may be
         * that of another kernel, and then this one runs all the same. */
        return fail(OPT_ERUNTIME, "the GPU failed in %s, and the step may be half made: load a checkpoint",
                    operation->name);
    }
    plan->proven = 1;
    plan->moved = plan->moves;
    return plan->ranks ? ranks_publish(plan->ranks, call, 0) : 1;
}
