/* What a plan's steps send to the other ranks: gradients before them, values after them, and numbers. */
#ifndef OPTPLUG_RANKS_H
#define OPTPLUG_RANKS_H

#include "bridge.h"

struct ranks;

/* Calls a collective of the host's with the host's own state around it: `collective` of optplug_host. */
typedef int (*collective_caller)(optplug_collective function, void *user, const char *what, const char *dtype,
                                 const void *send, void *receive, int64_t count);

/* Copy who they are; NULL if there are none, or memory runs out.  The plan's scalars are where they stay. */
struct ranks *ranks_make(const optplug_ranks *given, double *const *scalars);
void ranks_free(struct ranks *ranks);

/* Reduce the host's gradients to this rank's slices, unless that is done: 1 for success, or a status.  0 where
 * Python says why that does not go: a rank has failed, hyperparameters differ, a clip has reduced other gradients,
 * or this is a child of fork; or because a function of the host's is running. */
int ranks_reduce(struct ranks *ranks, collective_caller call);

/* Let gradients that this call has reduced stay so for the next ones, or be new again where it has failed. */
void ranks_settle(struct ranks *ranks, int is_kept);

/* Let all gradients of the host's that are reduced be zero, and new. */
void ranks_zero(struct ranks *ranks);

/* Let all ranks have the values of all slices: 1 for success, a status, or 0 where Python says that a rank has
 * failed, which may be this one. */
int ranks_publish(struct ranks *ranks, collective_caller call, int has_failed);

/* Let all ranks have some numbers of each, one rank's after the other's: 1 for success, a status, or 0. */
int ranks_numbers(struct ranks *ranks, collective_caller call, const double *mine, int count,
                  const double **all);
int ranks_size(const struct ranks *ranks);
int ranks_reduces(const struct ranks *ranks); /* whether it has any to reduce */

/* Return what must be alike on all ranks, as a number. */
double ranks_digest(const struct ranks *ranks);

#endif
