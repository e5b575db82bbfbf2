#include "elementwise.h"

#include <float.h>
#include <math.h>
#include <stddef.h>

#include "mkl.h"

#define JOIN_(SET, NAME, BITS) SET##_##NAME##_##BITS
#define JOIN(SET, NAME, BITS) JOIN_(SET, NAME, BITS)
#define TABLE_(SET) SET##_table
#define TABLE(SET) TABLE_(SET)
#if defined __clang__
#define EACH_ALONE _Pragma("clang loop vectorize(assume_safety)")
#else
#define EACH_ALONE _Pragma("GCC ivdep")
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

/* ---- Intel's square root, which torch's library may have in it ---- */

static void sqrt_mkl_f32(int64_t n, void *to, const void *a, const void *b, const void *c, double v, double u)
{
    (void)b, (void)c, (void)v, (void)u;
    mkl_sqrt_f32(n, a, to);
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
    if (operation == ELEMENTWISE_SQRT_MKL)
        return !mkl_find() ? NULL : bytes == 4 ? sqrt_mkl_f32 : sqrt_mkl_f64;
#ifdef __x86_64__
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq"))
        return avx512_table[operation][bytes == 8];
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return avx2_table[operation][bytes == 8];
#endif
    return plain_table[operation][bytes == 8];
}

int elementwise_takes(double scalar, int bytes)
{
    return bytes == 8 || !isfinite(scalar) || fabs(scalar) <= FLT_MAX;
}

int elementwise_run(int operation, int bytes, int64_t n, void *to, const void *a, const void *b,
                    const void *c, double v, double u)
{
    elementwise found = elementwise_find(operation, bytes);
    if (found)
        found(n, to, a, b, c, v, u);
    return found != NULL;
}
