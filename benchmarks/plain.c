/* What a C programmer would write by hand, and how fast the machine copies memory.  With AS_TORCH defined, Adam
 * and AdamW by hand with each rounding of torch's fused kernel, whose bits they have but for the last few values,
 * which fill no vector. */
#include <math.h>

#include "server.h"

enum { MOST = 10000 };

static float *data[MOST], *grad[MOST], *mean[MOST], *square[MOST];
static int used, is_adam;
static float decay; /* of the weights: AdamW's */
static long length;
static double count;

static int setup(const char *name, int parameters, long size)
{
    decay = strcmp(name, "AdamW") == 0 ? 1 - 0.001f * 0.01f : 1;
    is_adam = strcmp(name, "Adam") == 0 || decay != 1;
#ifdef AS_TORCH
    if (!is_adam)
        return 0;
#endif
    if ((!is_adam && strcmp(name, "SGD") != 0) || parameters > MOST || strcmp(kind, "new") != 0)
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
#pragma omp parallel for simd if (parallel : n > 16384)
    for (long i = 0; i < n; i++)
        w[i] -= 0.001f * g[i];
}

static void adam(float *restrict w, const float *restrict g, float *restrict m, float *restrict v, long n,
                 float rate, float correction)
{
    const float keep = decay;
#pragma omp parallel for simd if (parallel : n > 16384)
    for (long i = 0; i < n; i++) {
#ifdef AS_TORCH
        m[i] = fmaf(0.1f, g[i] - m[i], m[i]);
        v[i] = fmaf(0.001f * g[i], g[i], 0.999f * v[i]);
        w[i] = keep * w[i] - rate * m[i] / (sqrtf(v[i]) / correction + 1e-8f);
#else
        m[i] = 0.9f * m[i] + 0.1f * g[i];
        v[i] = 0.999f * v[i] + 0.001f * g[i] * g[i];
        w[i] = keep * w[i] - rate * m[i] / (sqrtf(v[i]) * correction + 1e-8f);
#endif
    }
}

static void step(void)
{
    if (!is_adam) {
        for (int i = 0; i < used; i++)
            sgd(data[i], grad[i], length);
        return;
    }
    count++;
    const float rate = (float)(0.001 / (1 - pow(0.9, count)));
    const double root = sqrt(1 - pow(0.999, count));
#ifdef AS_TORCH
    const float correction = (float)root;
#else
    const float correction = (float)(1 / root);
#endif
    for (int i = 0; i < used; i++)
        adam(data[i], grad[i], mean[i], square[i], length, rate, correction);
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

/* The C library's copy, in as many pieces as there are threads. */
static void copy(void)
{
    enum { PIECES = 64 };
#pragma omp parallel for schedule(static) if (length > 16384)
    for (int i = 0; i < PIECES; i++) {
        long begin = length * i / PIECES, end = length * (i + 1) / PIECES;
        memcpy(data[0] + begin, grad[0] + begin, (size_t)(end - begin) * sizeof(float));
    }
}

/* What a step does with each of its arrays but one: read and write it in place. */
static void update(void)
{
    float *a = data[0], *b = grad[0];
#pragma omp parallel for simd if (parallel : length > 16384)
    for (long i = 0; i < length; i++) {
        a[i] *= 0.999f;
        b[i] *= 0.999f;
    }
}

/* "memory BYTES": the bytes a second, read and written, over so much memory: by copying one half of it to
 * the other, or by updating all of it in place, whichever is faster. */
static double extra(const char *command, long bytes)
{
    (void)command;
    length = bytes / 8;
    data[0] = filled(length);
    grad[0] = filled(length);
    double copied = (double)bytes / time_of(copy, 0.03), updated = 2 * (double)bytes / time_of(update, 0.03);
    free(data[0]);
    free(grad[0]);
    return copied > updated ? copied : updated;
}
