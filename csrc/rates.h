/* Hyperparameters that a plan may change without Python, and those changes of which Python is still to learn. */
#ifndef OPTPLUG_RATES_H
#define OPTPLUG_RATES_H

#include "bridge.h"

struct rate {
    int group; /* as in opt_set_value */
    char name[32];
    double low, high; /* what is known to be accepted */
    int count;
    double **places; /* where the plan has it */
    double value;
    int64_t change; /* which one it was that Python does not know of; 0: it knows all */
};

struct rates {
    int count;
    struct rate *all;
    double **places; /* those of all, one after the other */
    int64_t changes;
};

/* Take over those that Python has stated, of these scalars; none if there is no memory. */
void rates_take(struct rates *rates, const optplug_plan *stated, double *const *scalars);
void rates_free(struct rates *rates);

/* Change one; 0 if that is for Python to judge. */
int rates_set(struct rates *rates, int group, const char *name, double value);

/* Return the earliest change that Python does not know of, as it is now; NULL if it knows all. */
struct rate *rates_unknown(const struct rates *rates);

#endif
