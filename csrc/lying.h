/* Where torch's tensors lie, and as what, compared with where they lay before. */
#ifndef OPTPLUG_LYING_H
#define OPTPLUG_LYING_H

#include "bridge.h"

/* Write what torch's functions, a capsule, say of a tensor, and where it lies; 0 if they cannot tell. */
int lying_tell(const void *exchange, void *tensor, int64_t numbers[LYING_NUMBERS], void **place);

/* Return how many bytes there are from a tensor's first value to its last; -1 if it is not in the CPU's memory. */
int64_t lying_span(const int64_t numbers[LYING_NUMBERS]);

/* `optplug_host`'s. */
int lying_look(const optplug_lying *lying, int is_first);

#endif
