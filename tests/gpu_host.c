/* A C host on a GPU: gpu_host SPEC VALUES STEPS [graph] prints its parameters after so many steps.
 *
 * The CUDA runtime is opened when it runs, so that nothing of CUDA is needed to build this.  Half of the
 * steps are made one by one; with "graph" the others are replays of one that is captured. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <optplug.h>

/* What cuda_runtime_api.h declares, in C's own types. */
#define CUDA_FUNCTIONS(F)                                                                                    \
    F(cudaGetDeviceCount, (int *count))                                                                      \
    F(cudaMalloc, (void **data, size_t size))                                                                \
    F(cudaFree, (void *data))                                                                                \
    F(cudaMemcpyAsync, (void *to, const void *from, size_t size, int kind, void *stream))                    \
    F(cudaStreamCreateWithFlags, (void **stream, unsigned flags))                                            \
    F(cudaStreamSynchronize, (void *stream))                                                                 \
    F(cudaStreamBeginCapture, (void *stream, int mode))                                                      \
    F(cudaStreamEndCapture, (void *stream, void **graph))                                                    \
    F(cudaGraphInstantiateWithFlags, (void **executable, void *graph, unsigned long long flags))             \
    F(cudaGraphLaunch, (void *executable, void *stream))

#define DECLARE(name, arguments) int(*name) arguments;
static struct {
    CUDA_FUNCTIONS(DECLARE)
} cuda;

enum { TO_GPU = 1, FROM_GPU = 2, NON_BLOCKING = 1, GLOBAL = 0 };

static void check(int is_right, const char *what)
{
    if (is_right)
        return;
    fprintf(stderr, "%s: %s\n", what, opt_error());
    exit(1);
}

static int open_cuda(void)
{
    const char *libraries[] = {getenv("OPTPLUG_TEST_CUDART"), "libcudart.so.13", "libcudart.so.12"};
    void *library = RTLD_DEFAULT;
    for (int i = 0; !dlsym(library, "cudaMalloc") && i < 3; i++)
        library = libraries[i] ? dlopen(libraries[i], RTLD_NOW | RTLD_GLOBAL) : RTLD_DEFAULT;
#define LOOK_UP(name, arguments)                                                                             \
    cuda.name = (int(*) arguments)dlsym(library, #name);                                                     \
    if (!cuda.name)                                                                                          \
        return 0;
    CUDA_FUNCTIONS(LOOK_UP)
    return 1;
}

static void upload_gradient(float *host, void *grad, int n, int step, void *stream)
{
    for (int i = 0; i < n; i++)
        host[i] = (float)((i * 7 + step * 5) % 11 - 5) / 4;
    check(cuda.cudaMemcpyAsync(grad, host, sizeof *host * (size_t)n, TO_GPU, stream) == 0, "gradient");
    check(cuda.cudaStreamSynchronize(stream) == 0, "gradient");
}

int main(int argc, char **argv)
{
    enum { SKIPPED = 77 };
    if (argc < 4)
        return fprintf(stderr, "usage: %s SPEC VALUES STEPS [graph]\n", argv[0]), 2;
    int gpus = 0;
    if (!open_cuda() || cuda.cudaGetDeviceCount(&gpus) != 0 || gpus == 0)
        return fprintf(stderr, "there is no CUDA runtime, or no GPU\n"), SKIPPED;
    int n = atoi(argv[2]), steps = atoi(argv[3]), with_graph = argc > 4;
    size_t size = sizeof(float) * (size_t)n;
    float *host = calloc((size_t)n, sizeof *host);
    void *data, *grad, *stream;
    check(cuda.cudaStreamCreateWithFlags(&stream, NON_BLOCKING) == 0, "stream");
    check(cuda.cudaMalloc(&data, size) == 0 && cuda.cudaMalloc(&grad, size) == 0, "memory");
    check(cuda.cudaMemcpyAsync(data, host, size, TO_GPU, stream) == 0, "data");

    int opt = opt_create(argv[1]);
    check(opt > 0, "opt_create");
    int64_t shape[] = {n};
    check(opt_bind_nd(opt, "w", "float32", "cpu", 1, shape, data, NULL, grad, NULL) == OPT_EINVAL,
          "as the CPU's");
    check(strstr(opt_error(), "which is memory of cuda:0, not of the CPU") != NULL, "as the CPU's");
    check(opt_bind_nd(opt, "w", "float32", "cuda:0", 1, shape, data, NULL, host, NULL) == OPT_EINVAL,
          "the CPU's");
    check(strstr(opt_error(), "memory of the CPU, not of cuda:0") != NULL, "the CPU's");
    check(opt_bind_nd(opt, "w", "float32", "cuda:0", 1, shape, data, NULL, grad, NULL) == 0, "opt_bind_nd");
    check(opt_stream(opt, stream) == 0, "opt_stream");
    for (int step = 0; step < steps / 2; step++) {
        upload_gradient(host, grad, n, step, stream);
        check(opt_step(opt) == 0, "opt_step");
    }
    void *graph, *executable = NULL;
    if (with_graph) {
        check(cuda.cudaStreamBeginCapture(stream, GLOBAL) == 0, "capture");
        check(opt_step(opt) == 0, "opt_step");
        check(cuda.cudaStreamEndCapture(stream, &graph) == 0, "capture");
        check(cuda.cudaGraphInstantiateWithFlags(&executable, graph, 0) == 0, "graph");
    }
    for (int step = steps / 2; step < steps; step++) {
        upload_gradient(host, grad, n, step, stream);
        if (executable)
            check(cuda.cudaGraphLaunch(executable, stream) == 0, "graph");
        else
            check(opt_step(opt) == 0, "opt_step");
    }
    check(cuda.cudaMemcpyAsync(host, data, size, FROM_GPU, stream) == 0, "result");
    check(cuda.cudaStreamSynchronize(stream) == 0, "result");
    check(opt_free(opt) == 0, "opt_free");
    check(cuda.cudaFree(data) == 0 && cuda.cudaFree(grad) == 0, "memory");
    for (int i = 0; i < n; i++)
        printf("%a\n", host[i]);
    free(host);
    return 0;
}
