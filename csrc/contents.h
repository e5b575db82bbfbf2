/* What containers of Python's hold, compared with what they held before. */
#ifndef OPTPLUG_CONTENTS_H
#define OPTPLUG_CONTENTS_H

#include "bridge.h"

/* `optplug_host`'s. */
int64_t contents_note(const optplug_contents *noted);

#endif
