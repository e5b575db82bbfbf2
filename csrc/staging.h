/* Memory of our own for parameters that are bound without arrays: those come with each step, and are copied
 * here and back, so that PyTorch finds its tensors where they were. */
#ifndef OPTPLUG_STAGING_H
#define OPTPLUG_STAGING_H

#include <stdint.h>

struct staged; /* one parameter's */

/* An optimizer's, in the order of binding; empty where it is all zero. */
struct staging {
    struct staged *first;
};

/* Make memory for one parameter, of the layouts that opt_bind_nd has been given. */
int staging_make(const char *name, const char *dtype, int ndim, const int64_t *shape, const int64_t *strides,
                 const int64_t *grad_strides, struct staged **made);

/* Free one that is in no staging; NULL is fine. */
void staging_free(struct staged *staged);

void *staging_data(const struct staged *staged);
void *staging_grad(const struct staged *staged);

/* Take one over, in the place of the one of its name, or at the end. */
void staging_put(struct staging *staging, struct staged *staged);

/* Free the one of this name, if it is there; free all. */
void staging_remove(struct staging *staging, const char *name);
void staging_clear(struct staging *staging);

/* Return the name of the first parameter; NULL if there is none. */
const char *staging_first(const struct staging *staging);

/* Fail unless there are parameters and all are of this dtype. */
int staging_check(const struct staging *staging, const char *dtype);

/* Copy arrays that hold all parameters, one after the other, to where they lie here; and the data back. */
void staging_copy_in(const struct staging *staging, const void *data, const void *grad);
void staging_copy_out(const struct staging *staging, void *data);

#endif
