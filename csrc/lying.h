/* Where torch's tensors lie, and as what, compared with where they lay before. */
#ifndef OPTPLUG_LYING_H
#define OPTPLUG_LYING_H

#include "bridge.h"

/* `optplug_host`'s. */
int lying_look(const optplug_lying *lying, int is_first);

#endif
