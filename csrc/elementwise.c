#include "elementwise.h"

#include <float.h>
#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#ifdef __x86_64__
#include <immintrin.h>
#endif

#include "half.h"
#include "mkl.h"
#include "openmp.h"
#include "root.h"

#define JOIN_(SET, NAME, BITS) SET##_##NAME##_##BITS
#define JOIN(SET, NAME, BITS) JOIN_(SET, NAME, BITS)
#define TABLE_(SET) SET##_table
#define TABLE(SET) TABLE_(SET)
/* Unrolled, for the few values of a record's block: the processor foresees the end of a loop of few rounds. */
#if defined __clang__
#define EACH_ALONE _Pragma("clang loop vectorize(assume_safety) unroll_count(4)")
#else
#define EACH_ALONE _Pragma("GCC ivdep") _Pragma("GCC unroll 4")
#endif

#define SET plain
#define FEATURES
#include "elementwise_set.h"

#ifdef __x86_64__
#define SET avx2
#define FEATURES __attribute__((target("avx2,fma")))
#include "elementwise_set.h"
#define SET avx512
#define FEATURES __attribute__((target("avx2,fma,avx512f,avx512vl,avx512dq")))
#include "elementwise_set.h"
#endif

/* ---- float16, for which processors with AVX2 have instructions of their own ---- */

#ifdef __x86_64__
#define CONVERTING __attribute__((target("avx2,f16c")))

CONVERTING static void widen_f16c(int64_t n, void *to_, const void *a_, const void *b, const void *c,
                                  double v, double u)
{
    float *to = to_;
    const uint16_t *a = a_;
    (void)b, (void)c, (void)v, (void)u;
    int64_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(a + i))));
    for (; i < n; i++)
        to[i] = widen_float16(a[i]);
}

CONVERTING static void narrow_f16c(int64_t n, void *to_, const void *a_, const void *b, const void *c,
                                   double v, double u)
{
    uint16_t *to = to_;
    const float *a = a_;
    (void)b, (void)c, (void)v, (void)u;
    int64_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm_storeu_si128((__m128i *)(to + i), _mm256_cvtps_ph(_mm256_loadu_ps(a + i), 0));
    for (; i < n; i++)
        to[i] = narrow_float16(a[i]);
}

CONVERTING static void round_f16c(int64_t n, void *to_, const void *a_, const void *b, const void *c,
                                  double v, double u)
{
    float *to = to_;
    const float *a = a_;
    (void)b, (void)c, (void)v, (void)u;
    int64_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm256_cvtps_ph(_mm256_loadu_ps(a + i), 0)));
    for (; i < n; i++)
        to[i] = round_float16(a[i]);
}
#endif

/* ---- Intel's square root, which torch's library may have in it ---- */

static void sqrt_mkl_f32(int64_t n, void *to, const void *a, const void *b, const void *c, double v, double u)
{
    (void)b, (void)c, (void)v, (void)u;
    mkl_sqrt_f32(n, a, to);
}

static void sqrt_newton_f32(int64_t n, void *to, const void *a, const void *b, const void *c, double v,
                            double u)
{
    (void)b, (void)c, (void)v, (void)u;
    root_f32(n, a, to);
}

static void sqrt_mkl_f64(int64_t n, void *to, const void *a, const void *b, const void *c, double v, double u)
{
    (void)b, (void)c, (void)v, (void)u;
    mkl_sqrt_f64(n, a, to);
}

/* ---- all ---- */

elementwise elementwise_find(int operation, int bytes)
{
    if (operation < 0 || operation >= ELEMENTWISE_COUNT || (bytes != 4 && bytes != 8))
        return NULL;
    if (operation == ELEMENTWISE_SQRT_NEWTON)
        return bytes == 4 && root_find() ? sqrt_newton_f32 : NULL;
    if (operation == ELEMENTWISE_SQRT_MKL)
        return !mkl_find() ? NULL : bytes == 4 ? sqrt_mkl_f32 : sqrt_mkl_f64;
#ifdef __x86_64__
    if (bytes == 4 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        if (operation == ELEMENTWISE_WIDEN_FLOAT16)
            return widen_f16c;
        if (operation == ELEMENTWISE_NARROW_FLOAT16)
            return narrow_f16c;
        if (operation == ELEMENTWISE_ROUND_FLOAT16)
            return round_f16c;
    }
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq"))
        return avx512_table[operation][bytes == 8];
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return avx2_table[operation][bytes == 8];
#endif
    return plain_table[operation][bytes == 8];
}

struct job {
    elementwise run;
    int bytes;
    int64_t n;
    char *to;
    const char *operands[3]; /* NULL: none */
    double v, u;
};

static void run_share(void *data, int thread, int threads)
{
    const struct job *job = data;
    int64_t end, begin = openmp_share(job->n, thread, threads, &end);
    const char *at[3];
    for (int i = 0; i < 3; i++)
        at[i] = job->operands[i] ? job->operands[i] + begin * job->bytes : NULL;
    job->run(end - begin, job->to + begin * job->bytes, at[0], at[1], at[2], job->v, job->u);
}

void elementwise_share(elementwise run, int bytes, int64_t n, void *to, const void *a, const void *b,
                       const void *c, double v, double u)
{
    struct job job = {run, bytes, n, to, {a, b, c}, v, u};
    if (n < WORTH_THREADS)
        run(n, to, a, b, c, v, u);
    else
        openmp_run(run_share, &job);
}

struct half half_find(int format)
{
    const int first = format == FORMAT_FLOAT16 ? ELEMENTWISE_WIDEN_FLOAT16 : ELEMENTWISE_WIDEN_BFLOAT16;
    return (struct half){elementwise_find(first, 4), elementwise_find(first + 1, 4),
                         elementwise_find(first + 2, 4)};
}

double elementwise_round(double value, int format)
{
    switch (format) {
    case FORMAT_FLOAT16:
        return round_float16((float)value);
    case FORMAT_BFLOAT16:
        return round_bfloat16((float)value);
    case FORMAT_FLOAT32:
        return (float)value;
    default:
        return value;
    }
}

int elementwise_takes(double scalar, int bytes)
{
    return bytes == 8 || !isfinite(scalar) || fabs(scalar) <= FLT_MAX;
}

/* Do one to values in half precision, a few at a time. */
static void run_half(elementwise found, int format, int64_t n, char *to, const void *const *operands,
                     double v, double u)
{
    enum { FEW = 256 };
    const struct half half = half_find(format);
    float values[4][FEW];
    for (int64_t i = 0; i < n; i += FEW) {
        const int64_t few = n - i < FEW ? n - i : FEW;
        for (int k = 0; k < 3; k++)
            half.widen(few, values[k], (const char *)operands[k] + 2 * i, NULL, NULL, 0, 0);
        found(few, values[3], values[0], values[1], values[2], v, u);
        half.narrow(few, to + 2 * i, values[3], NULL, NULL, 0, 0);
    }
}

int elementwise_run(int operation, int format, int64_t n, void *to, const void *a, const void *b,
                    const void *c, double v, double u)
{
    elementwise found = elementwise_find(operation, worked_in(format));
    if (found && abs(format) == 2)
        run_half(found, format, n, to, (const void *const[]){a, b, c}, v, u);
    else if (found)
        elementwise_share(found, worked_in(format), n, to, a, b, c, v, u);
    return found != NULL;
}
