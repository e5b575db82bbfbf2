/* What the measured programs on a GPU share: the CUDA runtime, which is opened when they run, so that nothing
 * of CUDA need be there to compile them; the arrays; and what they answer besides (see server.h).
 *
 *     host STEPS     how long the call of a step takes, of so many onto an idle GPU
 *     device STEPS   how long the GPU takes for a step, of so many that wait in its queue
 *     memory BYTES   the bytes a second, read and written, of copying one half of so much memory to the other
 *     values STEPS   make so many steps down half the square of the parameters, whose gradient they are
 *                    themselves, and write the parameters to the file that BENCHMARK_VALUES names
 *
 * BENCHMARK_CUDA is the library of the runtime.  All goes onto the legacy default stream, as steps do. */
#ifndef GPU_H
#define GPU_H

#include <dlfcn.h>

#include "server.h"

enum { MOST = 10000, COPIES = 20, MOST_HOLDS = 64 };
enum { TO_GPU = 1, FROM_GPU = 2, ON_GPU = 3 }; /* cudaMemcpyKind */

static const size_t hold_size = (size_t)1 << 28; /* of other work for the GPU */

#define CUDA_FUNCTIONS(F)                                                                                    \
    F(cudaMalloc, (void **memory, size_t size))                                                              \
    F(cudaFree, (void *memory))                                                                              \
    F(cudaMemcpy, (void *to, const void *from, size_t size, int kind))                                       \
    F(cudaMemcpyAsync, (void *to, const void *from, size_t size, int kind, void *stream))                    \
    F(cudaMemsetAsync, (void *memory, int value, size_t size, void *stream))                                 \
    F(cudaDeviceSynchronize, (void))                                                                         \
    F(cudaGetLastError, (void))                                                                              \
    F(cudaEventCreate, (void **event))                                                                       \
    F(cudaEventRecord, (void *event, void *stream))                                                          \
    F(cudaEventQuery, (void *event))                                                                         \
    F(cudaEventSynchronize, (void *event))                                                                   \
    F(cudaEventElapsedTime, (float *milliseconds, void *begin, void *end))

#define DECLARE(name, arguments) int(*name) arguments;
static struct {
    CUDA_FUNCTIONS(DECLARE)
} cuda;
#undef DECLARE

static void *cuda_function(const char *name)
{
    static void *library = RTLD_DEFAULT;
    void *function = dlsym(library, name);
    const char *path = getenv("BENCHMARK_CUDA");
    if (!function && path && library == RTLD_DEFAULT) {
        library = dlopen(path, RTLD_NOW | RTLD_GLOBAL);
        function = library ? dlsym(library, name) : NULL;
    }
    if (!function) {
        fprintf(stderr, "no %s of CUDA's runtime in %s\n", name, path ? path : "this program");
        exit(1);
    }
    return function;
}

static void open_cuda(void)
{
#define LOOK_UP(name, arguments) cuda.name = (int(*) arguments)cuda_function(#name);
    if (!cuda.cudaMalloc) {
        CUDA_FUNCTIONS(LOOK_UP)
    }
#undef LOOK_UP
}

static void check_cuda(const char *what, int status)
{
    if (status != 0) {
        fprintf(stderr, "%s: CUDA's error %d\n", what, status);
        exit(1);
    }
}

static void wait_for_gpu(void) { check_cuda("cudaDeviceSynchronize", cuda.cudaDeviceSynchronize()); }

/* ---- arrays ---- */

static float *data[MOST], *grad[MOST];
static int used;
static size_t array_size;

static void *reserved(size_t size)
{
    void *memory;
    check_cuda("cudaMalloc", cuda.cudaMalloc(&memory, size));
    return memory;
}

static float *filled_on_gpu(const float *values)
{
    void *array = reserved(array_size);
    check_cuda("cudaMemcpy", cuda.cudaMemcpy(array, values, array_size, TO_GPU));
    return (float *)array;
}

/* Return 0 if there is no place for so many. */
static int make_arrays(int count, long size)
{
    if (count > MOST)
        return 0;
    open_cuda();
    float *values = filled(size);
    array_size = sizeof(float) * (size_t)size;
    for (used = 0; used < count; used++) {
        data[used] = filled_on_gpu(values);
        grad[used] = filled_on_gpu(values);
    }
    free(values);
    return 1;
}

static void free_arrays(void)
{
    for (int i = 0; i < used; i++) {
        check_cuda("cudaFree", cuda.cudaFree(data[i]));
        check_cuda("cudaFree", cuda.cudaFree(grad[i]));
    }
}

/* ---- times ---- */

static double host_time(long steps)
{
    wait_for_gpu();
    double start = now();
    for (long i = 0; i < steps; i++)
        step();
    double spent = now() - start;
    wait_for_gpu(); /* the next to measure may be another program */
    return spent / (double)steps;
}

/* The GPU is given other work first, and more of it until that lasts longer than the calls do: it would wait
 * for each call otherwise, and that would be what is timed. */
static double device_time(void (*call)(void), long count)
{
    static void *begin, *end, *memory;
    static int holds = 1;
    if (!memory) {
        check_cuda("cudaEventCreate", cuda.cudaEventCreate(&begin));
        check_cuda("cudaEventCreate", cuda.cudaEventCreate(&end));
        memory = reserved(hold_size);
    }
    for (;; holds *= 2) {
        for (int i = 0; i < holds; i++)
            check_cuda("cudaMemsetAsync", cuda.cudaMemsetAsync(memory, 0, hold_size, NULL));
        check_cuda("cudaEventRecord", cuda.cudaEventRecord(begin, NULL));
        for (long i = 0; i < count; i++)
            call();
        int is_held = cuda.cudaEventQuery(begin) != 0;
        cuda.cudaGetLastError(); /* where torch would find that the event is not there yet */
        check_cuda("cudaEventRecord", cuda.cudaEventRecord(end, NULL));
        check_cuda("cudaEventSynchronize", cuda.cudaEventSynchronize(end));
        if (is_held || holds == MOST_HOLDS)
            break;
    }
    float milliseconds;
    check_cuda("cudaEventElapsedTime", cuda.cudaEventElapsedTime(&milliseconds, begin, end));
    return 1e-3 * (double)milliseconds / (double)count;
}

static void *from, *to;
static size_t copied;

static void copy(void)
{
    check_cuda("cudaMemcpyAsync", cuda.cudaMemcpyAsync(to, from, copied, ON_GPU, NULL));
}

static double speed_of_memory(long size)
{
    copied = (size_t)size / 2;
    from = reserved(copied);
    to = reserved(copied);
    double seconds = device_time(copy, COPIES);
    check_cuda("cudaFree", cuda.cudaFree(from));
    check_cuda("cudaFree", cuda.cudaFree(to));
    return 2 * (double)copied / seconds;
}

/* ---- values ---- */

static double write_values(long steps)
{
    for (long i = 0; i < steps; i++) {
        for (int j = 0; j < used; j++)
            check_cuda("cudaMemcpyAsync", cuda.cudaMemcpyAsync(grad[j], data[j], array_size, ON_GPU, NULL));
        step();
    }
    FILE *file = fopen(getenv("BENCHMARK_VALUES"), "wb");
    void *values = malloc(array_size);
    int is_written = file && values;
    for (int i = 0; i < used && is_written; i++) {
        check_cuda("cudaMemcpy", cuda.cudaMemcpy(values, data[i], array_size, FROM_GPU));
        is_written = fwrite(values, array_size, 1, file) == 1;
    }
    free(values);
    if (!is_written || fclose(file) != 0) {
        perror(getenv("BENCHMARK_VALUES"));
        exit(1);
    }
    return 0;
}

static double extra(const char *command, long argument)
{
    open_cuda();
    if (strcmp(command, "host") == 0)
        return host_time(argument);
    if (strcmp(command, "device") == 0)
        return device_time(step, argument);
    if (strcmp(command, "memory") == 0)
        return speed_of_memory(argument);
    return write_values(argument);
}

#endif
