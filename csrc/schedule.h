/* Steps of the schedulers without Python: numbers that a plan moves, and of which Python hears later. */
#ifndef OPTPLUG_SCHEDULE_H
#define OPTPLUG_SCHEDULE_H

#include "bridge.h"

struct schedule;

/* Copy what Python has stated, of a plan with these scalars; NULL if there is nothing, or no memory. */
struct schedule *schedule_make(const optplug_schedulers *stated, double *const *scalars);
void schedule_free(struct schedule *schedule);

/* Step the schedulers, and return 1; 0, with nothing changed, where Python is to do it. */
int schedule_step(struct schedule *schedule);

/* Whether Python does not know of such a step, and that it knows now. */
int schedule_is_ahead(const struct schedule *schedule);
void schedule_is_known(struct schedule *schedule);

#endif
