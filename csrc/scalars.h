/* A record's scalars: arithmetic in double, as Python does it, and the branches that went by it. */
#ifndef OPTPLUG_SCALARS_H
#define OPTPLUG_SCALARS_H

#include <stddef.h>

#include "elementwise.h"

/* Lists of tensors, one after the other. */
struct lists {
    int count, length; /* of lists, and of tensors in each */
    optplug_tensor *tensors;
    int *formats;
};

static inline optplug_tensor *lists_tensor(const struct lists *lists, int list, int i)
{
    return &lists->tensors[(size_t)list * (size_t)lists->length + (size_t)i];
}

struct scalars {
    int count, guard_count;
    optplug_scalar *each;
    elementwise *operations; /* of those that are operations on tensors of one value */
    int *guards;
};

/* Copy a record's scalars and guards; 0 if memory runs out, or this machine lacks an operation.  scalars_free
 * takes those that are filled in in part. */
int scalars_make(struct scalars *scalars, const optplug_record *given);
void scalars_free(struct scalars *scalars);

/* Compute the scalars from an operator's options and the tensors of one value with that index; 0 where a guard
 * is not what it was, or Python might raise an error. */
int scalars_evaluate(const struct scalars *scalars, const struct lists *lists, int index,
                     const double *options, double *values);

/* Let the tensor of one value in a list become a scalar. */
void scalars_store(const struct lists *lists, int list, int index, double value);

#endif
