/* Where torch's tensors lie, and as what, compared with where they lay before. */
#ifndef OPTPLUG_LYING_H
#define OPTPLUG_LYING_H

#include "bridge.h"

/* Return torch's functions that are in a capsule; NULL where there are none. */
const void *lying_functions(void *exchange);

/* Write what these say of a tensor, and where it lies; 0 if they cannot tell. */
int lying_tell(const void *functions, void *tensor, int64_t numbers[LYING_NUMBERS], void **place);

/* Return how many bytes there are from a tensor's first value to its last; -1 if it is not in the CPU's memory. */
int64_t lying_span(const int64_t numbers[LYING_NUMBERS]);

/* `optplug_host`'s. */
int lying_look(const optplug_lying *lying, int is_first);

#endif
