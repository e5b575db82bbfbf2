/* The host's gradients, zeroed and clipped without Python, as torch.nn.utils does it. */
#ifndef OPTPLUG_GRADIENTS_H
#define OPTPLUG_GRADIENTS_H

#include "ranks.h"

struct gradients;

/* Copy where they are; NULL if there are none, or memory runs out. */
struct gradients *gradients_make(const optplug_gradients *given);
void gradients_free(struct gradients *gradients);

/* Each returns 1, or 0 where Python is to do it: gradients that are not finite, long, or not there. */
int gradients_zero(const struct gradients *gradients);
int gradients_clip_norm(const struct gradients *gradients, double max_norm, double *total_norm);

/* Clip by the norm over all ranks; also 2 where Python is to do it and the ranks have told each other what they
 * have, or a status. */
int gradients_clip_norm_of_ranks(const struct gradients *gradients, struct ranks *ranks,
                                 collective_caller call, double max_norm, int error_if_nonfinite,
                                 double *total_norm);
int gradients_clip_value(const struct gradients *gradients, double clip_value);

#endif
