/* Steps an optimizer after main, and so after the host's Python has ended. */
#include <stdio.h>
#include <stdlib.h>

static int (*step)(int);
static const char *(*error)(void);
static int optimizer;

static void late(void) { printf("%d %s\n", step(optimizer), error()); }

void step_at_exit(int (*opt_step)(int), const char *(*opt_error)(void), int opt);

void step_at_exit(int (*opt_step)(int), const char *(*opt_error)(void), int opt)
{
    step = opt_step;
    error = opt_error;
    optimizer = opt;
    atexit(late);
}
