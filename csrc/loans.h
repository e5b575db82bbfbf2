/* Gradients that a class outside torch gets as copies of the host's. */
#ifndef OPTPLUG_LOANS_H
#define OPTPLUG_LOANS_H

#include "bridge.h"

/* `optplug_host`'s. */
int loans_lend(const optplug_loans *loans, int is_first);
int loans_take_back(const optplug_loans *loans);

#endif
