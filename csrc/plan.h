/* Plans: steps that run without Python, as operators of torch's on tensors that are known beforehand. */
#ifndef OPTPLUG_PLAN_H
#define OPTPLUG_PLAN_H

#include "ranks.h"

struct gradients;
struct plan;
struct rate;
struct schedule;

/* Make a plan of the operators that Python has stated, all through torch's stable ABI if `stable`; NULL if
 * torch cannot.  One that `minds_modes` leaves a step to Python where modes of PyTorch's are on, as a Python
 * host may have them. */
struct plan *plan_new(const optplug_plan *stated, int stable, int minds_modes);

/* Free a plan; NULL is fine. */
void plan_free(struct plan *plan);

/* Return the host's gradients where they can be zeroed and clipped without Python now; NULL for a NULL plan, too. */
const struct gradients *plan_gradients(const struct plan *plan);

/* Return the ranks that step together; NULL if there are none. */
struct ranks *plan_ranks(const struct plan *plan);

/* Return which statement it was made from; 0 for NULL. */
int64_t plan_serial(const struct plan *plan);

/* Give its operators their doubles and bools anew, as stated now. */
void plan_set_scalars(struct plan *plan, const optplug_plan *stated);

/* Change a hyperparameter in the plan alone; 0 if that is for Python to do. */
int plan_set_value(struct plan *plan, int group, const char *name, double value);

/* Return the earliest such change that Python does not know of, to be told; NULL if there is none. */
struct rate *plan_unknown(const struct plan *plan);

/* Step the schedulers; 0, with nothing changed, where Python is to do it. */
int plan_step_schedule(struct plan *plan);

/* Tell whether steps, of the schedulers too, have moved numbers that Python keeps; note that it has taken them. */
int plan_has_moved(const struct plan *plan);
void plan_is_taken(struct plan *plan);

/* Tell whether Python does not know of all that has changed in the plan. */
int plan_is_ahead(const struct plan *plan);

/* Make the step, calling collectives so: 1 for success, or a status; 0 if Python is to make it, or to say why that does not go: a
 * gradient is not finite, a forked process has no GPU, torch fails. */
int plan_run(struct plan *plan, collective_caller call);

/* Tell whether torch has failed in it. */
int plan_has_failed(const struct plan *plan);

/* Return how steps are made: "direct", "stable" or "recorded", "Python" for NULL. */
const char *plan_way(const struct plan *plan);

#endif
