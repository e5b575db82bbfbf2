/* What the measured programs share: commands on stdin, a line each, tab between words; answers on stdout.
 *
 *     new NAME COUNT SIZE   an optimizer by that name, lr=0.001, on COUNT parameters of SIZE float32 each
 *     loop NAME COUNT SIZE  the same, and a step is what a training loop does: clip the gradients' norm to 0.5,
 *                           step, step StepLR(1000, 0.99), average exponentially with 0.999
 *     set NAME COUNT SIZE   the same, and a step sets the learning rate first
 *     time SECONDS          how long a step takes, of as many as fill that time
 *     end                   of the optimizer
 *
 * A program defines setup, which returns 0 if it has no such optimizer, step and teardown; and extra, which
 * answers what it has besides. */
#ifndef SERVER_H
#define SERVER_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static char kind[8]; /* the word before NAME */
static int lr_count;

static int setup(const char *name, int count, long size);
static void step(void);
static void teardown(void);
static double extra(const char *command, long argument);

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Return the seconds that one call takes. */
static double time_of(void (*call)(void), double seconds)
{
    long done = 0, batch = 1;
    double start = now(), spent;
    do {
        for (long i = 0; i < batch; i++)
            call();
        done += batch;
        batch *= 2;
        spent = now() - start;
    } while (spent < seconds);
    return spent / (double)done;
}

/* Return a learning rate that is another one than the last. */
static inline double next_lr(void) { return 1e-3 + 1e-6 * (lr_count++ % 97); }

/* Return an array of n values that are small and not zero. */
static float *filled(long n)
{
    float *array = (float *)malloc(sizeof(float) * (size_t)n);
    if (!array)
        exit(1);
    for (long i = 0; i < n; i++)
        array[i] = 0.1f + 0.001f * (float)(i % 97);
    return array;
}

int main(void)
{
    char line[256], name[64];
    while (fgets(line, sizeof line, stdin)) {
        int count;
        long size;
        double seconds;
        if (sscanf(line, "%7[^\t]\t%63[^\t]\t%d\t%ld", kind, name, &count, &size) == 4) {
            lr_count = 0;
            printf("%d\n", setup(name, count, size));
        } else if (sscanf(line, "time\t%lf", &seconds) == 1)
            printf("%.9e\n", time_of(step, seconds));
        else if (strcmp(line, "end\n") == 0)
            teardown(), puts("0");
        else if (sscanf(line, "%63[^\t]\t%ld", name, &size) == 2)
            printf("%.9e\n", extra(name, size));
        fflush(stdout);
    }
    return 0;
}

#endif
