/* What an optimizer of a class outside torch holds: all that its attributes lead to. */
#ifndef OPTPLUG_HOLDINGS_H
#define OPTPLUG_HOLDINGS_H

#include "bridge.h"

/* `optplug_host`'s. */
int64_t holdings_note(optplug_holdings *holdings, int takes);
void holdings_forget(optplug_holdings *holdings);

#endif
