/* Memory of our own for parameters that are bound without arrays: those come with each step, and are copied
 * here and back, so that PyTorch finds its tensors where they were. */
#ifndef OPTPLUG_LENT_H
#define OPTPLUG_LENT_H

#include <stdint.h>

/* A list of them, in the order in which they were bound; NULL is the empty one. */
struct lent;

/* Make memory for one parameter, of the layouts that opt_bind_nd has been given. */
int lent_make(const char *name, const char *dtype, int ndim, const int64_t *shape, const int64_t *strides,
              const int64_t *grad_strides, struct lent **made);

void *lent_data(const struct lent *lent);
void *lent_grad(const struct lent *lent);
const char *lent_name(const struct lent *lent);

/* Put one in the place of the one of its name, which is freed, or at the end of a list. */
void lent_put(struct lent **list, struct lent *lent);

/* Free the one of this name, if it is in the list. */
void lent_remove(struct lent **list, const char *name);

void lent_free(struct lent *list);

/* Fail unless the list has parameters and all are of this dtype. */
int lent_check(const struct lent *list, const char *dtype);

/* Copy arrays that hold all parameters, one after the other, to where they lie here; and the data back. */
void lent_copy_in(struct lent *list, const void *data, const void *grad);
void lent_copy_out(const struct lent *list, void *data);

#endif
