#include "error.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static _Thread_local char message[1024];
static _Thread_local char traceback[8192];
static _Thread_local char warnings[4096];
static _Thread_local char taken_warnings[sizeof warnings];

/* A thread-local array of unknown length has no place to be freed in but a key's destructor. */
static pthread_key_t text_key;
static pthread_once_t text_once = PTHREAD_ONCE_INIT;

static void make_text_key(void) { pthread_key_create(&text_key, free); }

/* Make `message` one line of whole UTF-8 characters, whatever was printed into it. */
static void tidy(void)
{
    size_t n = strlen(message);
    if (n == sizeof message - 1)
        while (n > 0 && ((unsigned char)message[n - 1] & 0x80))
            n--;
    message[n] = '\0';
    for (char *c = message; *c; c++)
        if ((unsigned char)*c < ' ')
            *c = ' ';
}

int fail(int status, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    tidy();
    traceback[0] = '\0';
    return status;
}

void error_record(const char *text, const char *trace)
{
    snprintf(message, sizeof message, "%s", text);
    tidy();
    /* The end of a traceback tells more than its beginning. */
    size_t n = strlen(trace);
    if (n >= sizeof traceback)
        trace += n - (sizeof traceback - 1);
    while (((unsigned char)*trace & 0xC0) == 0x80) /* not from the middle of a character */
        trace++;
    snprintf(traceback, sizeof traceback, "%s", trace);
}

const char *error_message(void) { return message; }
const char *error_traceback(void) { return traceback; }

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
