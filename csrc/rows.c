/* Torch's scalar product is its library's BLAS, which a host may have in a version of its own. */
#include "rows.h"

#include <dlfcn.h>
#include <math.h>
#include <stdatomic.h>
#include <stddef.h>
#include <string.h>

#include "elementwise.h"
#include "torch.h"

typedef float (*dot32)(const int *n, const float *a, const int *step_a, const float *b, const int *step_b);
typedef double (*dot64)(const int *n, const double *a, const int *step_a, const double *b, const int *step_b);

static dot32 _Atomic found_dot32;
static dot64 _Atomic found_dot64;

static int find(void)
{
    void *library = torch_library();
    if (!library)
        return 0;
    found_dot32 = (dot32)dlsym(library, "sdot_");
    found_dot64 = (dot64)dlsym(library, "ddot_");
    return found_dot32 && found_dot64;
}

double rows_dot(int bytes, int64_t n, const void *a, const void *b)
{
    const int count = (int)n, step = 1;
    dot32 in32 = atomic_load(&found_dot32);
    dot64 in64 = atomic_load(&found_dot64);
    if (!in32 || !in64) {
        if (!find())
            return NAN;
        in32 = atomic_load(&found_dot32);
        in64 = atomic_load(&found_dot64);
    }
    return bytes == 4 ? in32(&count, a, &step, b, &step) : in64(&count, a, &step, b, &step);
}

#define LARGEST(NAME, TYPE)                                                                                  \
    static TYPE NAME(int64_t n, const TYPE *a)                                                               \
    {                                                                                                        \
        TYPE most = 0;                                                                                       \
        int has_nan = 0;                                                                                     \
        for (int64_t i = 0; i < n; i++) {                                                                    \
            TYPE size = a[i] < 0 ? -a[i] : a[i];                                                             \
            most = size > most ? size : most;                                                                \
            has_nan |= a[i] != a[i];                                                                         \
        }                                                                                                    \
        return has_nan ? (TYPE)NAN : most;                                                                   \
    }

LARGEST(largest32, float)
LARGEST(largest64, double)

double rows_largest(int bytes, int64_t n, const void *a)
{
    return bytes == 4 ? largest32(n, a) : largest64(n, a);
}

/* ---- the arrays whose values are in a row, one after the other ---- */

void rows_take(const optplug_parts *parts, void *row)
{
    char *to = row;
    for (int i = 0; i < parts->count; i++) {
        size_t size = (size_t)parts->lengths[i] * (size_t)parts->bytes;
        memcpy(to, parts->arrays[i], size);
        to += size;
    }
}

void rows_put(const optplug_parts *parts, const void *row)
{
    const char *from = row;
    for (int i = 0; i < parts->count; i++) {
        size_t size = (size_t)parts->lengths[i] * (size_t)parts->bytes;
        memcpy(parts->arrays[i], from, size);
        from += size;
    }
}

int rows_move(const optplug_parts *parts, int add, const void *row, double factor)
{
    elementwise run = elementwise_find(add, parts->bytes);
    if (!run)
        return 0;
    const char *from = row;
    for (int i = 0; i < parts->count; i++) {
        run(parts->lengths[i], parts->arrays[i], parts->arrays[i], from, NULL, factor, 0);
        from += parts->lengths[i] * parts->bytes;
    }
    return 1;
}

/* ---- an inverse Hessian ---- */

static double rounded(int bytes, double value) { return bytes == 4 ? (double)(float)value : value; }

int rows_multiply(const optplug_inverse *by, void *row)
{
    elementwise add = elementwise_find(by->add, by->bytes);
    elementwise multiply = elementwise_find(ELEMENTWISE_MUL_SCALAR, by->bytes);
    if (!add || !multiply)
        return 0;
    for (int i = by->count - 1; i >= 0; i--) {
        by->products[i] = rounded(by->bytes, rows_dot(by->bytes, by->n, by->steps[i], row) * by->factors[i]);
        add(by->n, row, row, by->differences[i], NULL, -by->products[i], 0);
    }
    multiply(by->n, row, row, NULL, NULL, by->diagonal, 0);
    for (int i = 0; i < by->count; i++) {
        double product =
            rounded(by->bytes, rows_dot(by->bytes, by->n, by->differences[i], row) * by->factors[i]);
        add(by->n, row, row, by->steps[i], NULL, rounded(by->bytes, by->products[i] - product), 0);
    }
    return 1;
}
