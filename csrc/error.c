#include "error.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static _Thread_local char message[1024];
static _Thread_local char traceback[8192];
static _Thread_local int last_status;
static _Thread_local char creation[sizeof message];
static _Thread_local char warnings[4096];
static _Thread_local char taken_warnings[sizeof warnings];

/* A thread-local array of unknown length has no place to be freed in but a key's destructor. */
static pthread_key_t text_key;
static pthread_once_t text_once = PTHREAD_ONCE_INIT;

static void make_text_key(void) { pthread_key_create(&text_key, free); }

/* Return how many bytes the UTF-8 character at `c` has; 0 if it is none. */
static size_t length_of(const unsigned char *c)
{
    size_t length = c[0] < 0x80                    ? 1
                    : c[0] >= 0xC2 && c[0] <= 0xDF ? 2
                    : c[0] >= 0xE0 && c[0] <= 0xEF ? 3
                    : c[0] >= 0xF0 && c[0] <= 0xF4 ? 4
                                                   : 0;
    for (size_t i = 1; i < length; i++)
        if ((c[i] & 0xC0) != 0x80)
            return 0;
    /* Too long for what it says, a surrogate, or beyond the last character. */
    int is_none = (c[0] == 0xE0 && c[1] < 0xA0) || (c[0] == 0xED && c[1] > 0x9F) ||
                  (c[0] == 0xF0 && c[1] < 0x90) || (c[0] == 0xF4 && c[1] > 0x8F);
    return length && !is_none ? length : 0;
}

void error_tidy(char *text)
{
    for (unsigned char *c = (unsigned char *)text; *c;) {
        size_t length = length_of(c);
        if (length == 0 || *c < ' ')
            *c = length ? ' ' : '?';
        c += length ? length : 1;
    }
}

int fail(int status, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    error_tidy(message);
    traceback[0] = '\0';
    last_status = status;
    return status;
}

void error_record(int status, const char *text, const char *trace)
{
    last_status = status;
    snprintf(message, sizeof message, "%s", text);
    error_tidy(message);
    /* The end of a traceback tells more than its beginning. */
    size_t n = strlen(trace);
    if (n >= sizeof traceback)
        trace += n - (sizeof traceback - 1);
    while (((unsigned char)*trace & 0xC0) == 0x80) /* not from the middle of a character */
        trace++;
    snprintf(traceback, sizeof traceback, "%s", trace);
}

const char *error_message(void) { return message; }
int error_status(void) { return last_status; }
const char *error_traceback(void) { return traceback; }

void error_keep(void) { strcpy(creation, message); }
const char *error_kept(void) { return creation; }

void warning_add(const char *line)
{
    size_t used = strlen(warnings);
    if (used + strlen(line) + 2 <= sizeof warnings) /* else too many to be of use: those before tell */
        snprintf(warnings + used, sizeof warnings - used, "%s\n", line);
}

const char *warning_take(void)
{
    strcpy(taken_warnings, warnings);
    warnings[0] = '\0';
    return taken_warnings;
}

void text_set(const char *text)
{
    pthread_once(&text_once, make_text_key);
    free(pthread_getspecific(text_key));
    pthread_setspecific(text_key, strdup(text));
}

const char *text_get(void)
{
    pthread_once(&text_once, make_text_key);
    return pthread_getspecific(text_key);
}
