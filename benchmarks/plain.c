/* What a C programmer would write by hand, and how fast the machine copies memory. */
#include <math.h>

#include "server.h"

enum { MOST = 10000 };

static float *data[MOST], *grad[MOST], *mean[MOST], *square[MOST];
static int used, is_adam;
static long length;
static double count;

static int setup(const char *name, int parameters, long size)
{
    is_adam = strcmp(name, "Adam") == 0;
    if (!is_adam && strcmp(name, "SGD") != 0)
        return 0;
    used = parameters;
    length = size;
    count = 0;
    for (int i = 0; i < used; i++) {
        data[i] = filled(size);
        grad[i] = filled(size);
        mean[i] = filled(size);
        square[i] = filled(size);
    }
    return 1;
}

static void sgd(float *restrict w, const float *restrict g, long n)
{
#pragma omp parallel for simd if (n > 16384)
    for (long i = 0; i < n; i++)
        w[i] -= 0.001f * g[i];
}

static void adam(float *restrict w, const float *restrict g, float *restrict m, float *restrict v, long n)
{
    float rate = (float)(0.001 / (1 - pow(0.9, count)));
    float correction = (float)(1 / sqrt(1 - pow(0.999, count)));
#pragma omp parallel for simd if (n > 16384)
    for (long i = 0; i < n; i++) {
        m[i] = 0.9f * m[i] + 0.1f * g[i];
        v[i] = 0.999f * v[i] + 0.001f * g[i] * g[i];
        w[i] -= rate * m[i] / (sqrtf(v[i]) * correction + 1e-8f);
    }
}

static void step(void)
{
    count++;
    for (int i = 0; i < used; i++)
        if (is_adam)
            adam(data[i], grad[i], mean[i], square[i], length);
        else
            sgd(data[i], grad[i], length);
}

static void teardown(void)
{
    for (int i = 0; i < used; i++) {
        free(data[i]);
        free(grad[i]);
        free(mean[i]);
        free(square[i]);
    }
}

static void copy(void)
{
    float *restrict to = data[0];
    const float *restrict from = grad[0];
#pragma omp parallel for simd if (length > 16384)
    for (long i = 0; i < length; i++)
        to[i] = from[i];
}

/* "copy BYTES": the bytes a second, read and written, of a copy that touches so many in all. */
static double extra(const char *command, long bytes)
{
    (void)command;
    length = bytes / 8;
    data[0] = filled(length);
    grad[0] = filled(length);
    double seconds = time_of(copy, 0.05);
    free(data[0]);
    free(grad[0]);
    return (double)bytes / seconds;
}
