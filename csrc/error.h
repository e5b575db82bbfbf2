/* What this thread is told: its last error and the traceback behind it, warnings, its last description. */
#ifndef OPTPLUG_ERROR_H
#define OPTPLUG_ERROR_H

/* Record a status and a message, forget the traceback, and return the status. */
__attribute__((format(printf, 2, 3))) int fail(int status, const char *format, ...);

/* Record an error of Python's. */
void error_record(int status, const char *message, const char *traceback);

/* Make a text one line of UTF-8, whatever was printed into it. */
void error_tidy(char *text);

const char *error_message(void);
int error_status(void);
const char *error_traceback(void);

/* Keep the last message as that of a failed creation, for whoever uses the status as a handle; "" if none. */
void error_keep(void);
const char *error_kept(void);

/* Keep a warning until warning_take returns it with the others, a line each. */
void warning_add(const char *line);
const char *warning_take(void);

/* Keep a copy of `text` for this thread; text_get returns it, or NULL if memory ran out. */
void text_set(const char *text);
const char *text_get(void);

#endif
