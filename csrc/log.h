/* What the library does, told in lines: to stderr where OPTPLUG_LOG says so, and to the host's own log. */
#ifndef OPTPLUG_LOG_H
#define OPTPLUG_LOG_H

#include <stdatomic.h>

#include "optplug.h"

enum { LOG_INFO = 1, LOG_DEBUG = 2 };

/* The highest level that anybody wants; 0 where nobody listens. */
extern _Atomic int log_level;

/* Read OPTPLUG_LOG, once. */
void log_start(void);

/* Tell a line.  It goes to stderr at once, and to the host when this thread's call ends: see log_deliver. */
__attribute__((format(printf, 2, 3))) void log_line(int level, const char *format, ...);

/* Return seconds, for the time that something takes. */
double log_seconds(void);

/* The host's function, and the level of what it gets; setting it waits for calls of the one before to end. */
int log_set_function(opt_log_function function, void *user);
void log_set_level(int level);
int log_function_level(void);

/* Give the host this thread's lines.  Call where the host's state is back and no lock of ours is held. */
void log_deliver(void);

/* In a child of fork, where this thread is alone. */
void log_after_fork(void);

#endif
