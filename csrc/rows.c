/* Torch's scalar product is its library's BLAS, which a host may have in a version of its own. */
#include "rows.h"

#include <dlfcn.h>
#include <math.h>
#include <stdatomic.h>
#include <stddef.h>
#include <string.h>

#include "elementwise.h"
#include "openmp.h"
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

/* Return the largest absolute value, or what is no number where one is; in lanes, which a compiler makes a vector
 * of, though the order of comparisons is fixed. */
enum { LANES = 32 };
#define LARGER(SIZE, MOST) ((SIZE) > (MOST) || (SIZE) != (SIZE) ? (SIZE) : (MOST))
#define LARGEST(NAME, TYPE, ABSOLUTE)                                                                        \
    static double NAME(int64_t n, const TYPE *a)                                                             \
    {                                                                                                        \
        TYPE most[LANES] = {0};                                                                              \
        int64_t i = 0;                                                                                       \
        for (; i + LANES <= n; i += LANES)                                                                   \
            for (int k = 0; k < LANES; k++)                                                                  \
                most[k] = LARGER(ABSOLUTE(a[i + k]), most[k]);                                               \
        for (; i < n; i++)                                                                                   \
            most[0] = LARGER(ABSOLUTE(a[i]), most[0]);                                                       \
        for (int k = 1; k < LANES; k++)                                                                      \
            most[0] = LARGER(most[k], most[0]);                                                              \
        return most[0];                                                                                      \
    }

LARGEST(largest32, float, fabsf)
LARGEST(largest64, double, fabs)

struct looking {
    int bytes;
    int64_t n;
    const char *row;
    double _Atomic most;
};

static void look_at_share(void *data, int thread, int threads)
{
    struct looking *looking = data;
    int64_t end, begin = openmp_share(looking->n, thread, threads, &end);
    const void *from = looking->row + begin * looking->bytes;
    double most = looking->bytes == 4 ? largest32(end - begin, from) : largest64(end - begin, from);
    double before = atomic_load(&looking->most);
    while (before == before && LARGER(most, before) != before &&
           !atomic_compare_exchange_weak(&looking->most, &before, most))
        ;
}

double rows_largest(int bytes, int64_t n, const void *a)
{
    struct looking looking = {bytes, n, a, 0};
    if (n < WORTH_THREADS)
        look_at_share(&looking, 0, 1);
    else
        openmp_run(look_at_share, &looking);
    return atomic_load(&looking.most);
}

/* ---- the arrays whose values are in a row, one after the other ---- */

static void copy(int bytes, int64_t n, void *to, const void *from)
{
    elementwise run = bytes == 1 ? NULL : elementwise_find(ELEMENTWISE_COPY, bytes);
    if (run)
        elementwise_share(run, bytes, n, to, from, NULL, NULL, 0, 0);
    else
        memcpy(to, from, (size_t)(n * bytes));
}

void rows_take(const optplug_parts *parts, void *row)
{
    char *to = row;
    for (int i = 0; i < parts->count; i++) {
        copy(parts->bytes, parts->lengths[i], to, parts->arrays[i]);
        to += parts->lengths[i] * parts->bytes;
    }
}

void rows_put(const optplug_parts *parts, const void *row)
{
    const char *from = row;
    for (int i = 0; i < parts->count; i++) {
        copy(parts->bytes, parts->lengths[i], parts->arrays[i], from);
        from += parts->lengths[i] * parts->bytes;
    }
}

void rows_copy(const optplug_parts *from, const optplug_parts *to)
{
    for (int i = 0; i < from->count; i++)
        copy(from->bytes, from->lengths[i], to->arrays[i], from->arrays[i]);
}

int rows_move(const optplug_parts *parts, int add, const void *row, double factor)
{
    elementwise run = elementwise_find(add, parts->bytes);
    if (!run)
        return 0;
    const char *from = row;
    for (int i = 0; i < parts->count; i++) {
        elementwise_share(run, parts->bytes, parts->lengths[i], parts->arrays[i], parts->arrays[i], from,
                          NULL, factor, 0);
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
        elementwise_share(add, by->bytes, by->n, row, row, by->differences[i], NULL, -by->products[i], 0);
    }
    elementwise_share(multiply, by->bytes, by->n, row, row, NULL, NULL, by->diagonal, 0);
    for (int i = 0; i < by->count; i++) {
        double product =
            rounded(by->bytes, rows_dot(by->bytes, by->n, by->differences[i], row) * by->factors[i]);
        elementwise_share(add, by->bytes, by->n, row, row, by->steps[i], NULL,
                          rounded(by->bytes, by->products[i] - product), 0);
    }
    return 1;
}
