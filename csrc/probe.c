/* A C host that starts optplug and says what it got: how `python -m optplug doctor` sees what a
 * program that is no Python would get.
 *
 * With options for opt_init it times steps before that, for `python -m optplug bench`: a line "SIZE SECONDS
 * SPEC" on stdin is answered by how long a step takes, of as many as fill that time. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "optplug.h"

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int answer(int opt, double least)
{
    long done = 0, batch = 1;
    double start = now(), spent;
    do {
        for (long i = 0; i < batch; i++)
            if (opt_step(opt) < 0)
                return -1;
        done += batch;
        batch *= 2;
        spent = now() - start;
    } while (spent < least);
    printf("seconds: %.9e\n", spent / (double)done);
    fflush(stdout);
    return 0;
}

/* Make an optimizer on one array that is new, and the steps that go through Python. */
static int set_up(const char *spec, long size, float **arrays)
{
    float *w = *arrays = malloc(2 * sizeof *w * (size_t)size);
    for (long i = 0; w && i < 2 * size; i++)
        w[i] = 0.1f;
    int opt = opt_create(spec);
    int status = opt < 0 ? opt : opt_bind(opt, "w", "float32", size, w, w ? w + size : NULL);
    for (int i = 0; status >= 0 && i < 3; i++)
        status = opt_step(opt);
    return status < 0 ? status : opt;
}

static int time_steps(void)
{
    char line[4096], spec[4096], known[4096] = "";
    float *arrays = NULL;
    long size, known_size = 0;
    double seconds;
    int opt = 0;
    while (opt >= 0 && fgets(line, sizeof line, stdin) &&
           sscanf(line, "%ld %lf %[^\n]", &size, &seconds, spec) == 3) {
        if (size != known_size || strcmp(spec, known) != 0) {
            if (opt > 0)
                opt_free(opt);
            free(arrays);
            opt = set_up(spec, size, &arrays);
            strcpy(known, spec);
            known_size = size;
        }
        if (opt > 0 && answer(opt, seconds) < 0)
            return -1;
    }
    return opt;
}

/* Make steps whose result is known by hand, 0.1 - 3 * 0.1, and say how. */
static int make_steps(void)
{
    float *arrays = NULL;
    int opt = set_up("SGD(lr=1)", 2, &arrays);
    if (opt < 0)
        return opt;
    const char *text = opt_describe(opt);
    const char *way = text ? strstr(text, "\nway: ") : NULL;
    if (way)
        printf("optplug: %s\nsteps are made: %.*s\n", opt_version(), (int)strcspn(way + 6, "\n"), way + 6);
    int status = arrays[0] < -0.199999f && arrays[0] > -0.200001f ? 0 : -1;
    if (status < 0)
        printf("error: three steps of SGD gave %g instead of -0.2\n", (double)arrays[0]);
    opt_free(opt);
    free(arrays);
    return status;
}

int main(int argc, char **argv)
{
    int status = opt_init(argc > 1 ? argv[1] : NULL);
    if (status >= 0)
        status = argc > 1 ? time_steps() : make_steps();
    if (status < 0 && *opt_error())
        printf("error: %s\n", opt_error());
    const char *text = opt_describe(0);
    printf("%s", text ? text : "");
    return status < 0;
}
