#define _POSIX_C_SOURCE 200809L
#include "log.h"

#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "error.h"
#include "variable.h"

struct listener {
    opt_log_function function;
    void *user;
};

struct line {
    struct line *next;
    int level;
    char text[];
};

_Atomic int log_level;
static int stderr_level; /* set once */
static _Atomic int function_level = LOG_INFO;
static struct listener *_Atomic listener;
static _Atomic int calling; /* threads that may be in the listener's function */
static pthread_mutex_t change_lock = PTHREAD_MUTEX_INITIALIZER;
static double began;

static _Thread_local struct line *pending; /* the last one; its next is the first */
static _Thread_local int inside;           /* the listener's function runs */

double log_seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static void set_log_level(void)
{
    int host = atomic_load(&listener) ? atomic_load(&function_level) : 0;
    atomic_store(&log_level, host > stderr_level ? host : stderr_level);
}

static void read_variable(void)
{
    const char *wanted = variable_get("OPTPLUG_LOG");
    began = log_seconds();
    if (wanted && strcmp(wanted, "info") == 0)
        stderr_level = LOG_INFO;
    if (wanted && strcmp(wanted, "debug") == 0)
        stderr_level = LOG_DEBUG;
    set_log_level();
}

void log_start(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, read_variable);
}

/* In one piece, so that lines of several processes and threads stay apart. */
static void write_line(const char *text)
{
    char line[2200];
    int n =
        snprintf(line, sizeof line - 1, "optplug[%ld] %.3f: %s", (long)getpid(), log_seconds() - began, text);
    if (n > (int)sizeof line - 2)
        n = (int)sizeof line - 2;
    line[n++] = '\n';
    ssize_t written = write(STDERR_FILENO, line, (size_t)n);
    (void)written;
}

static void keep_line(int level, const char *text)
{
    struct line *line = malloc(sizeof *line + strlen(text) + 1);
    if (!line)
        return;
    line->level = level;
    strcpy(line->text, text);
    line->next = pending ? pending->next : line;
    if (pending)
        pending->next = line;
    pending = line;
}

void log_line(int level, const char *format, ...)
{
    if (level > atomic_load(&log_level) || inside)
        return;
    int error_number = errno;
    char text[2048];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    error_tidy(text);
    if (level <= stderr_level)
        write_line(text);
    if (atomic_load(&listener) && level <= atomic_load(&function_level))
        keep_line(level, text);
    errno = error_number;
}

void log_deliver(void)
{
    if (!pending || inside)
        return;
    int error_number = errno;
    struct line *line = pending->next;
    pending->next = NULL;
    pending = NULL;
    inside = 1;
    atomic_fetch_add(&calling, 1);
    struct listener *to = atomic_load(&listener);
    while (line) {
        struct line *next = line->next;
        if (to) {
            errno = error_number;
            to->function(to->user, line->level, line->text);
        }
        free(line);
        line = next;
    }
    atomic_fetch_sub(&calling, 1);
    inside = 0;
    errno = error_number;
}

int log_set_function(opt_log_function function, void *user)
{
    const struct timespec millisecond = {0, 1000000};
    if (inside) /* it would wait for itself */
        return fail(OPT_ESTATE, "opt_log must not be called from the log function: call it elsewhere");
    log_start();
    struct listener *new = function ? malloc(sizeof *new) : NULL;
    if (function && !new)
        return fail(OPT_ENOMEM, "out of memory");
    if (new)
        *new = (struct listener){function, user};
    pthread_mutex_lock(&change_lock);
    struct listener *old = atomic_exchange(&listener, new);
    set_log_level();
    while (old && atomic_load(&calling) > 0)
        nanosleep(&millisecond, NULL);
    free(old);
    pthread_mutex_unlock(&change_lock);
    return OPT_OK;
}

void log_set_level(int level)
{
    atomic_store(&function_level, level);
    set_log_level();
}

int log_function_level(void) { return atomic_load(&listener) ? atomic_load(&function_level) : 0; }

void log_after_fork(void)
{
    atomic_store(&calling, inside);
    pthread_mutex_init(&change_lock, NULL);
}
