/* The start: Python, ours or the one that runs, with the bridge in it. */
#ifndef OPTPLUG_START_H
#define OPTPLUG_START_H

#include <stddef.h>

/* Start Python, or borrow the one that runs, and import the bridge.  `python` is the interpreter to use, or
 * NULL.  Does nothing when that is done already. */
int start_python(const char *python);

/* Describe the library and its start, a "name: value" a line; nonzero if Python has more to say. */
int start_describe(char *text, size_t size);

#endif
