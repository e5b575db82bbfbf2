/* Plans: steps that run without Python, as operators of torch's on tensors that are known beforehand. */
#ifndef OPTPLUG_PLAN_H
#define OPTPLUG_PLAN_H

#include "bridge.h"

struct plan;

/* Find torch's C functions in its library, and those for a GPU in another one, which are loaded already; 0 if
 * one of the first is missing, and then there are no plans; without the others there are none on GPUs. */
int plan_open_torch(const char *library, const char *gpu_library);

/* Return torch's library, for dlsym; NULL where plan_open_torch has not succeeded. */
void *plan_torch_library(void);

/* Let torch set this thread's OpenMP count, as it does by itself before a thread's first loop; 0 where
 * plan_open_torch has not succeeded. */
int plan_enter_thread(void);

/* Make a plan of operators, all through torch's stable ABI if `stable`; NULL if torch cannot.  One that
 * `minds_modes` leaves a step to Python where modes of PyTorch's are on, as a Python host may have them. */
struct plan *plan_new(const optplug_operator *operators, int count, int stable, int minds_modes);

/* Give the operator of an index its doubles and bools anew. */
void plan_set_scalars(struct plan *plan, int index, const double *scalars);

/* Make the step: 1 for success, or a status; 0 if Python is to make it, or to say why
 * that does not go: a gradient is not finite, a forked process has no GPU. */
int plan_run(struct plan *plan);

/* Free a plan; NULL is fine. */
void plan_free(struct plan *plan);

#endif
