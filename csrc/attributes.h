/* Attributes of Python's objects, compared with what they were, and put back. */
#ifndef OPTPLUG_ATTRIBUTES_H
#define OPTPLUG_ATTRIBUTES_H

#include "bridge.h"

/* Tell whether each is the object that it was.  The caller holds the GIL. */
int attributes_are(const optplug_attributes *attributes);

/* Set each; 0 where one cannot be set.  The caller holds the GIL. */
int attributes_set(const optplug_attributes *attributes);

#endif
