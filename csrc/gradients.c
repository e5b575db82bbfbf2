#include "gradients.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "elementwise.h"
#include "openmp.h"

/* Gradients as long as this are Python's, which adds them up in pieces. */
enum { LONG = 10000000, VECTOR = 64 /* bytes, at most */ };

struct gradients {
    int count, bytes, lanes, fused, chunk;
    optplug_tensor *tensors;
    elementwise add_scalar, mul_scalar, reciprocal, clamp_max, clamp;
    double *norms; /* room for the norm of each, in its dtype */
};

struct gradients *gradients_make(const optplug_gradients *given)
{
    if (given->count == 0)
        return NULL;
    int bytes = strcmp(given->tensors[0].dtype, "float64") == 0 ? 8 : 4;
    if (given->lanes * bytes > VECTOR)
        return NULL;
    struct gradients *gradients = calloc(1, sizeof *gradients);
    if (!gradients)
        return NULL;
    *gradients = (struct gradients){
        .count = given->count,
        .bytes = bytes,
        .lanes = given->lanes,
        .fused = given->fused != 0,
        .chunk = given->chunk,
        .add_scalar = elementwise_find(given->add_scalar, bytes),
        .mul_scalar = elementwise_find(given->mul_scalar, bytes),
        .reciprocal = elementwise_find(given->reciprocal, bytes),
        .clamp_max = elementwise_find(given->clamp_max, bytes),
        .clamp = elementwise_find(given->clamp, bytes),
        .tensors = malloc((size_t)given->count * sizeof *given->tensors),
        .norms = malloc((size_t)given->count * sizeof *gradients->norms),
    };
    if (!gradients->tensors || !gradients->norms) {
        gradients_free(gradients);
        return NULL;
    }
    memcpy(gradients->tensors, given->tensors, (size_t)given->count * sizeof *given->tensors);
    return gradients;
}

void gradients_free(struct gradients *gradients)
{
    if (!gradients)
        return;
    free(gradients->tensors);
    free(gradients->norms);
    free(gradients);
}

/* ---- norms ---- */

/* Add up squares as torch's compiler does (aten/src/ATen/native/cpu/ReduceOpsKernel.cpp, norm_two_reduce_step):
 * in lanes, which are then added one by one, and after them the values that fill no lane.  It takes some of those
 * together, and rounds their squares; the squares of others only in the sum, which in lanes it does on ARM. */
#define SUM_OF_SQUARES(NAME, TYPE, LANES, ADD_SQUARE, FMA)                                                   \
    static TYPE NAME(int64_t n, const TYPE *x, int chunk)                                                    \
    {                                                                                                        \
        TYPE lanes[LANES] = {0};                                                                             \
        int64_t i = 0;                                                                                       \
        for (; i < n - n % LANES; i += LANES)                                                                \
            for (int j = 0; j < LANES; j++)                                                                  \
                lanes[j] = ADD_SQUARE(x[i + j], x[i + j], lanes[j]);                                         \
        TYPE sum = lanes[0];                                                                                 \
        for (int j = 1; j < LANES; j++)                                                                      \
            sum += lanes[j];                                                                                 \
        int64_t rounded = chunk > 0 ? n - (n - i) % chunk : i;                                               \
        for (; i < rounded; i++)                                                                             \
            sum += x[i] * x[i];                                                                              \
        for (; i < n; i++)                                                                                   \
            sum = FMA(x[i], x[i], sum);                                                                      \
        return sum;                                                                                          \
    }
#define ROUNDED(a, b, sum) ((sum) + (a) * (b))

SUM_OF_SQUARES(squares2_f64, double, 2, ROUNDED, fma)
SUM_OF_SQUARES(squares4_f64, double, 4, ROUNDED, fma)
SUM_OF_SQUARES(squares8_f64, double, 8, ROUNDED, fma)
SUM_OF_SQUARES(squares4_f32, float, 4, ROUNDED, fmaf)
SUM_OF_SQUARES(squares8_f32, float, 8, ROUNDED, fmaf)
SUM_OF_SQUARES(squares16_f32, float, 16, ROUNDED, fmaf)
SUM_OF_SQUARES(fused2_f64, double, 2, fma, fma)
SUM_OF_SQUARES(fused4_f64, double, 4, fma, fma)
SUM_OF_SQUARES(fused8_f64, double, 8, fma, fma)
SUM_OF_SQUARES(fused4_f32, float, 4, fmaf, fmaf)
SUM_OF_SQUARES(fused8_f32, float, 8, fmaf, fmaf)
SUM_OF_SQUARES(fused16_f32, float, 16, fmaf, fmaf)

/* By whether lanes are fused, and by how many there are: a vector of 16, 32 or 64 bytes. */
static double (*const sums_f64[2][3])(int64_t n, const double *x, int chunk) = {
    {squares2_f64, squares4_f64, squares8_f64},
    {fused2_f64, fused4_f64, fused8_f64},
};
static float (*const sums_f32[2][3])(int64_t n, const float *x, int chunk) = {
    {squares4_f32, squares8_f32, squares16_f32},
    {fused4_f32, fused8_f32, fused16_f32},
};

/* The norm of one value is its size, without a square that might underflow. */
static void norm(const struct gradients *gradients, int64_t n, const void *x, void *result)
{
    int fused = gradients->fused, size = gradients->lanes * gradients->bytes / 32, chunk = gradients->chunk;
    if (n == 1 && gradients->bytes == 8)
        *(double *)result = fabs(*(const double *)x);
    else if (n == 1)
        *(float *)result = fabsf(*(const float *)x);
    else if (gradients->bytes == 8)
        *(double *)result = sqrt(sums_f64[fused][size](n, x, chunk));
    else
        *(float *)result = sqrtf(sums_f32[fused][size](n, x, chunk));
}

/* ---- what is done to each ---- */

struct job {
    const struct gradients *gradients;
    const optplug_tensor *tensor;
    void (*run)(const struct job *job, char *values, int64_t n);
    double value;
};

static void run_share(void *data, int thread, int threads)
{
    const struct job *job = data;
    int64_t begin = job->tensor->n * thread / threads, end = job->tensor->n * (thread + 1) / threads;
    job->run(job, (char *)job->tensor->data + begin * job->gradients->bytes, end - begin);
}

static void run_each(const struct gradients *gradients,
                     void (*run)(const struct job *job, char *values, int64_t n), double value)
{
    for (int i = 0; i < gradients->count; i++) {
        struct job job = {gradients, &gradients->tensors[i], run, value};
        if (job.tensor->n >= WORTH_THREADS)
            openmp_run(run_share, &job);
        else
            run(&job, job.tensor->data, job.tensor->n);
    }
}

static void zero(const struct job *job, char *values, int64_t n)
{
    memset(values, 0, (size_t)n * (size_t)job->gradients->bytes);
}

static void scale(const struct job *job, char *values, int64_t n)
{
    job->gradients->mul_scalar(n, values, values, NULL, NULL, job->value, 0);
}

static void clamp(const struct job *job, char *values, int64_t n)
{
    job->gradients->clamp(n, values, values, NULL, NULL, -job->value, job->value);
}

int gradients_zero(const struct gradients *gradients)
{
    if (!gradients)
        return 0;
    run_each(gradients, zero, 0);
    return 1;
}

int gradients_clip_value(const struct gradients *gradients, double clip_value)
{
    if (!gradients || !gradients->clamp || !(clip_value >= 0) ||
        !elementwise_takes(clip_value, gradients->bytes))
        return 0;
    run_each(gradients, clamp, clip_value);
    return 1;
}

union value {
    float f32;
    double f64;
};

/* Have the norm of all; 0 where it is for Python to have. */
static int total_norm_of(const struct gradients *gradients, double max_norm, union value *value)
{
    if (!gradients || !gradients->lanes || !gradients->add_scalar || !gradients->reciprocal ||
        !gradients->mul_scalar || !gradients->clamp_max || !(max_norm >= 0) ||
        !elementwise_takes(max_norm, gradients->bytes))
        return 0;
    for (int i = 0; i < gradients->count; i++) {
        const optplug_tensor *tensor = &gradients->tensors[i];
        if (tensor->n > LONG)
            return 0;
        norm(gradients, tensor->n, tensor->data, (char *)gradients->norms + i * gradients->bytes);
    }
    norm(gradients, gradients->count, gradients->norms, value);
    return isfinite(gradients->bytes == 8 ? value->f64 : value->f32);
}

static double scale_to(const struct gradients *gradients, double max_norm, union value value)
{
    double total = gradients->bytes == 8 ? value.f64 : value.f32;
    gradients->add_scalar(1, &value, &value, NULL, NULL, 1e-6, 0);
    gradients->reciprocal(1, &value, &value, NULL, NULL, 0, 0);
    gradients->mul_scalar(1, &value, &value, NULL, NULL, max_norm, 0);
    gradients->clamp_max(1, &value, &value, NULL, NULL, 1, 0);
    run_each(gradients, scale, gradients->bytes == 8 ? value.f64 : value.f32);
    return total;
}

int gradients_clip_norm(const struct gradients *gradients, double max_norm, double *total_norm)
{
    union value value;
    if (!total_norm_of(gradients, max_norm, &value))
        return 0;
    *total_norm = scale_to(gradients, max_norm, value);
    return 1;
}

/* The numbers that ranks tell each other, as ranks.py has them. */
enum { HAS_FAILED, NORM, MAX_NORM, NORM_TYPE, IS_ERROR, DIGEST, NUMBERS };

int gradients_clip_norm_of_ranks(const struct gradients *gradients, struct ranks *ranks,
                                 collective_caller call, double max_norm, int error_if_nonfinite,
                                 double *total_norm)
{
    union value value;
    int reduced = ranks_reduce(ranks, call);
    if (reduced <= 0)
        return reduced;
    if (!total_norm_of(gradients, max_norm, &value))
        return 0;
    double part = gradients->bytes == 8 ? value.f64 : value.f32, top = 0, sum = 0;
    const double *all, mine[NUMBERS] = {0, part, max_norm, 2, error_if_nonfinite, ranks_digest(ranks)};
    int status = ranks_numbers(ranks, call, mine, NUMBERS, &all), size = ranks_size(ranks);
    if (status < 0)
        ranks_settle(ranks, 0);
    if (status <= 0)
        return status;
    for (int r = 0; r < size; r++) {
        const double *of = all + r * NUMBERS;
        if (of[HAS_FAILED] != 0 || !isfinite(of[NORM]) || of[MAX_NORM] != max_norm || of[NORM_TYPE] != 2 ||
            of[IS_ERROR] != error_if_nonfinite || of[DIGEST] != mine[DIGEST])
            return 2;
        top = of[NORM] > top ? of[NORM] : top;
    }
    for (int r = 0; r < size && top > 0; r++) {
        double ratio = all[r * NUMBERS + NORM] / top;
        sum += ratio * ratio;
    }
    top *= sqrt(sum);
    if (gradients->bytes == 8)
        value.f64 = top;
    else
        value.f32 = (float)top;
    if (!isfinite(gradients->bytes == 8 ? value.f64 : value.f32))
        return 2;
    *total_norm = scale_to(gradients, max_norm, value);
    ranks_settle(ranks, 1);
    return 1;
}
