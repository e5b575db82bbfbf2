/* MKL has a thread count of its own, which torch sets for the process: OpenMP's, for this thread, is not asked. */
#include "mkl.h"

#include <dlfcn.h>
#include <stdatomic.h>
#include <stddef.h>
#include <time.h>

#include "torch.h"

typedef void (*root32)(int n, const float *a, float *to, int64_t mode);
typedef void (*root64)(int n, const double *a, double *to, int64_t mode);

/* As torch calls it (aten/src/ATen/cpu/vml.h): high accuracy, denormals kept, errors ignored. */
enum { AS_TORCH = 0x2 | 0x140000 | 0x100 };

static root32 _Atomic find_root32;
static root64 _Atomic find_root64;
static int (*_Atomic find_threads)(
    int count); /* sets this thread's, and returns what it was; 0: the process's */

int mkl_find(void)
{
    void *library = torch_library();
    if (!library)
        return 0;
    find_root32 = (root32)dlsym(library, "vmsSqrt");
    find_root64 = (root64)dlsym(library, "vmdSqrt");
    find_threads = (int (*)(int))dlsym(library, "MKL_Set_Num_Threads_Local");
    return find_root32 && find_root64 && find_threads;
}

static int use_threads(int count)
{
    int (*use)(int) = atomic_load(&find_threads);
    return use(count);
}

void mkl_sqrt_f32(int64_t n, const float *a, float *to)
{
    root32 root = atomic_load(&find_root32);
    int before = use_threads(1);
    root((int)n, a, to, AS_TORCH);
    use_threads(before);
}

void mkl_sqrt_f64(int64_t n, const double *a, double *to)
{
    root64 root = atomic_load(&find_root64);
    int before = use_threads(1);
    root((int)n, a, to, AS_TORCH);
    use_threads(before);
}

/* Return the nanoseconds of a call, the least of a few. */
static double time_of(int64_t n, const float *a, float *to)
{
    double least = 1e9;
    for (int i = 0; i < 8; i++) {
        struct timespec begin, end;
        clock_gettime(CLOCK_MONOTONIC, &begin);
        mkl_sqrt_f32(n, a, to);
        clock_gettime(CLOCK_MONOTONIC, &end);
        double spent = (double)(end.tv_sec - begin.tv_sec) * 1e9 + (double)(end.tv_nsec - begin.tv_nsec);
        if (spent < least)
            least = spent;
    }
    return least;
}

int64_t mkl_cost(void)
{
    enum { MANY = 1024 };
    static int64_t _Atomic known;
    int64_t cost = atomic_load(&known);
    if (cost == 0) {
        float a[MANY], to[MANY];
        for (int i = 0; i < MANY; i++)
            a[i] = (float)(i + 1);
        double alone = time_of(1, a, to), more = time_of(MANY, a, to) - alone;
        cost = more > 0 && alone < more ? 1 + (int64_t)(MANY * alone / more) : MANY;
        atomic_store(&known, cost);
    }
    return cost;
}

void mkl_stay_alone(void)
{
    if (mkl_find())
        use_threads(1);
}
