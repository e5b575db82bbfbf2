/* A CUDA of two GPUs for machines without one: what torch asks of the runtime and of the driver.
 *
 * A GPU's memory is the CPU's, copies are made, and kernels are noted, not run.  So a test sees what is put
 * on which stream, and where a call waits for the GPU; it sees no numbers.
 *
 * It is to be preloaded: as libcuda.so.1 it is the driver, too. */
#include <cuda_runtime_api.h>

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#undef cudaGetDeviceProperties /* names of older CUDAs, which are macros now */
#undef cudaStreamGetCaptureInfo

enum { GPUS = 2 };
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static __thread int current;

/* ---- what has been asked ---- */

static char *notes;
static size_t used, room;

static void note(const char *format, ...)
{
    char line[4096];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    pthread_mutex_lock(&lock);
    size_t length = strlen(line);
    if (used + length + 2 > room) {
        room = 2 * (used + length + 2);
        notes = realloc(notes, room);
    }
    memcpy(notes + used, line, length);
    used += length;
    notes[used++] = '\n';
    notes[used] = '\0';
    pthread_mutex_unlock(&lock);
}

/* Return what has been asked since the last call, a line each. */
const char *standin_notes(void)
{
    static char *last;
    free(last);
    last = used ? notes : calloc(1, 1);
    notes = NULL;
    used = room = 0;
    return last;
}

/* ---- GPUs ---- */

cudaError_t cudaGetDeviceCount(int *count) { return *count = GPUS, cudaSuccess; }
cudaError_t cudaGetDevice(int *gpu) { return *gpu = current, cudaSuccess; }
cudaError_t cudaSetDevice(int gpu)
{
    return gpu < 0 || gpu >= GPUS ? cudaErrorInvalidDevice : (current = gpu, cudaSuccess);
}
cudaError_t cudaDriverGetVersion(int *version) { return *version = CUDART_VERSION, cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int *version) { return *version = CUDART_VERSION, cudaSuccess; }
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int gpu)
{
    *p = (struct cudaDeviceProp){.major = 9,
                                 .multiProcessorCount = 132,
                                 .warpSize = 32,
                                 .maxThreadsPerBlock = 1024,
                                 .maxThreadsPerMultiProcessor = 2048,
                                 .maxThreadsDim = {1024, 1024, 64},
                                 .maxGridSize = {1 << 30, 65535, 65535},
                                 .sharedMemPerBlock = 48 << 10,
                                 .sharedMemPerBlockOptin = 227 << 10,
                                 .regsPerBlock = 65536,
                                 .totalGlobalMem = 1ull << 34};
    snprintf(p->name, sizeof p->name, "stand-in %d", gpu);
    return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int gpu)
{
    (void)gpu;
    return *value = attribute == cudaDevAttrComputeCapabilityMajor ? 9 : 0, cudaSuccess;
}
cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest)
{
    return *least = 0, *greatest = -5, cudaSuccess;
}
cudaError_t cudaDeviceCanAccessPeer(int *can, int gpu, int peer)
{
    return (void)gpu, (void)peer, *can = 0, cudaSuccess;
}
static cudaError_t last_error;

/* Let a launch of the host's have failed. */
void standin_fail(void) { last_error = cudaErrorInvalidConfiguration; }

cudaError_t cudaPeekAtLastError(void) { return last_error; }
cudaError_t cudaGetLastError(void)
{
    cudaError_t error = last_error;
    return last_error = cudaSuccess, error;
}

/* ---- memory ---- */

static struct range {
    char *data;
    size_t size;
    int gpu;
    enum cudaMemoryType type;
    struct range *next;
} *ranges;

static cudaError_t take(void **data, size_t size, enum cudaMemoryType type)
{
    enum { ALIGNMENT = 512 };
    struct range *range = malloc(sizeof *range);
    if (posix_memalign(data, ALIGNMENT, size + ALIGNMENT) != 0)
        return cudaErrorMemoryAllocation;
    memset(*data, 0, size);
    pthread_mutex_lock(&lock);
    *range = (struct range){*data, size, current, type, ranges};
    ranges = range;
    pthread_mutex_unlock(&lock);
    return cudaSuccess;
}

cudaError_t cudaMalloc(void **data, size_t size) { return take(data, size, cudaMemoryTypeDevice); }
cudaError_t cudaMallocManaged(void **data, size_t size, unsigned flags)
{
    (void)flags;
    return take(data, size, cudaMemoryTypeManaged);
}
cudaError_t cudaHostAlloc(void **data, size_t size, unsigned flags)
{
    (void)flags;
    return take(data, size, cudaMemoryTypeHost);
}
cudaError_t cudaFree(void *data)
{
    pthread_mutex_lock(&lock);
    for (struct range **range = &ranges; *range; range = &(*range)->next)
        if ((*range)->data == data) {
            struct range *found = *range;
            *range = found->next;
            free(found);
            break;
        }
    pthread_mutex_unlock(&lock);
    free(data);
    return cudaSuccess;
}
cudaError_t cudaFreeHost(void *data) { return cudaFree(data); }

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *attributes, const void *data)
{
    const char *place = data;
    *attributes = (struct cudaPointerAttributes){.type = cudaMemoryTypeUnregistered, .device = -2};
    pthread_mutex_lock(&lock);
    for (struct range *range = ranges; range; range = range->next)
        if (place >= range->data && place < range->data + range->size)
            *attributes = (struct cudaPointerAttributes){.type = range->type, .device = range->gpu};
    pthread_mutex_unlock(&lock);
    return cudaSuccess;
}

/* The driver's, which knows nothing of memory that is not CUDA's. */
int cuPointerGetAttribute(void *value, int attribute, unsigned long long data)
{
    enum { MEMORY_TYPE = 2, IS_MANAGED = 8, ORDINAL = 9, INVALID_VALUE = 1 };
    struct cudaPointerAttributes found;
    cudaPointerGetAttributes(&found, (void *)(size_t)data);
    if (found.type == cudaMemoryTypeUnregistered)
        return INVALID_VALUE;
    if (attribute == MEMORY_TYPE)
        *(unsigned *)value = found.type == cudaMemoryTypeHost ? 1 : 2;
    else if (attribute == IS_MANAGED)
        *(char *)value = found.type == cudaMemoryTypeManaged;
    else if (attribute == ORDINAL)
        *(int *)value = found.device;
    return 0;
}

cudaError_t cudaMemGetInfo(size_t *unused, size_t *total)
{
    return *unused = *total = (size_t)1 << 34, cudaSuccess;
}
cudaError_t cudaMemcpy(void *to, const void *from, size_t size, enum cudaMemcpyKind kind)
{
    (void)kind;
    note("wait: copy %zu bytes", size);
    memcpy(to, from, size);
    return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t size, enum cudaMemcpyKind kind, cudaStream_t s)
{
    (void)kind;
    note("stream %p: copy %zu bytes", (void *)s, size);
    memcpy(to, from, size);
    return cudaSuccess;
}
cudaError_t cudaMemset(void *data, int value, size_t size)
{
    note("stream %p: set %zu bytes", NULL, size);
    memset(data, value, size);
    return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void *data, int value, size_t size, cudaStream_t s)
{
    note("stream %p: set %zu bytes", (void *)s, size);
    memset(data, value, size);
    return cudaSuccess;
}

/* ---- streams, and events on them ---- */

struct CUstream_st {
    int gpu, capturing;
};

static int is_own(cudaStream_t s) { return (size_t)s > 2; }
static int is_capturing(cudaStream_t s) { return is_own(s) && s->capturing; }

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *s, unsigned flags, int priority)
{
    (void)flags, (void)priority;
    *s = calloc(1, sizeof **s);
    (*s)->gpu = current;
    return cudaSuccess;
}
cudaError_t cudaStreamCreate(cudaStream_t *s) { return cudaStreamCreateWithPriority(s, 0, 0); }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned flags)
{
    return cudaStreamCreateWithPriority(s, flags, 0);
}
cudaError_t cudaStreamDestroy(cudaStream_t s) { return free(s), cudaSuccess; }
cudaError_t cudaStreamGetDevice(cudaStream_t s, int *gpu) { return *gpu = s->gpu, cudaSuccess; }
cudaError_t cudaStreamQuery(cudaStream_t s) { return (void)s, cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t s)
{
    note("wait: for stream %p", (void *)s);
    return is_capturing(s) ? cudaErrorStreamCaptureUnsupported : cudaSuccess;
}
cudaError_t cudaDeviceSynchronize(void) { return note("wait: for GPU %d", current), cudaSuccess; }

cudaError_t cudaStreamIsCapturing(cudaStream_t s, enum cudaStreamCaptureStatus *status)
{
    return *status = is_capturing(s) ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone,
           cudaSuccess;
}
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t s, enum cudaStreamCaptureStatus *status,
                                     unsigned long long *id, cudaGraph_t *graph,
                                     const cudaGraphNode_t **nodes, const cudaGraphEdgeData **edges,
                                     size_t *count)
{
    (void)graph, (void)nodes, (void)edges, (void)count;
    if (id)
        *id = 1;
    return cudaStreamIsCapturing(s, status);
}
cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *mode)
{
    return (void)mode, cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t s, enum cudaStreamCaptureMode mode)
{
    (void)mode;
    s->capturing = 1;
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *graph)
{
    s->capturing = 0;
    return *graph = (cudaGraph_t)s, cudaSuccess;
}

cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *executable, cudaGraph_t graph,
                                          unsigned long long flags)
{
    (void)flags;
    return *executable = (cudaGraphExec_t)graph, cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t s)
{
    (void)executable;
    return note("stream %p: graph", (void *)s), cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags)
{
    (void)flags;
    return *event = malloc(1), cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t *event) { return cudaEventCreateWithFlags(event, 0); }
cudaError_t cudaEventDestroy(cudaEvent_t event) { return free(event), cudaSuccess; }
cudaError_t cudaEventQuery(cudaEvent_t event) { return (void)event, cudaSuccess; }
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t from, cudaEvent_t to)
{
    (void)from, (void)to;
    return *ms = 1, cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
    return note("wait: for event %p", (void *)event), cudaSuccess;
}
cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t s, unsigned flags)
{
    (void)event, (void)flags;
    return note("stream %p: record", (void *)s), cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t s)
{
    return cudaEventRecordWithFlags(event, s, 0);
}
cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t event, unsigned flags)
{
    (void)event, (void)flags;
    return note("stream %p: behind an event", (void *)s), cudaSuccess;
}

/* ---- kernels ---- */

enum { BUCKETS = 1 << 16 };
static struct kernel {
    const void *function;
    char *name;
    struct kernel *next;
} *kernels[BUCKETS];

static struct kernel **bucket(const void *function) { return &kernels[((size_t)function >> 4) % BUCKETS]; }

void **__cudaRegisterFatBinary(void *binary)
{
    static void *handle;
    return (void)binary, &handle;
}
void __cudaRegisterFatBinaryEnd(void **handle) { (void)handle; }
void __cudaUnregisterFatBinary(void **handle) { (void)handle; }
void __cudaRegisterVar(void **handle, char *variable, char *address, const char *name, int external,
                       size_t size, int constant, int global)
{
    (void)handle, (void)variable, (void)address, (void)name, (void)external, (void)size, (void)constant,
        (void)global;
}
void __cudaRegisterFunction(void **handle, const char *function, char *device_function, const char *name,
                            int limit, void *a, void *b, void *c, void *d, int *e)
{
    (void)handle, (void)device_function, (void)limit, (void)a, (void)b, (void)c, (void)d, (void)e;
    struct kernel *kernel = malloc(sizeof *kernel);
    *kernel = (struct kernel){function, strdup(name), *bucket(function)};
    *bucket(function) = kernel;
}

static cudaError_t launch(const void *function, cudaStream_t s)
{
    const struct kernel *kernel = *bucket(function);
    while (kernel && kernel->function != function)
        kernel = kernel->next;
    note("stream %p: on GPU %d %s", (void *)s, current, kernel ? kernel->name : "?");
    return cudaSuccess;
}

static __thread struct {
    dim3 grid, block;
    size_t shared;
    cudaStream_t stream;
} configured; /* one at a time: a launch follows at once */

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, cudaStream_t s)
{
    configured.grid = grid, configured.block = block, configured.shared = shared, configured.stream = s;
    return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *s)
{
    *grid = configured.grid, *block = configured.block, *shared = configured.shared;
    *(cudaStream_t *)s = configured.stream;
    return cudaSuccess;
}
cudaError_t __cudaGetKernel(cudaKernel_t *kernel, const void *function)
{
    return *kernel = (cudaKernel_t)function, cudaSuccess;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void **arguments, size_t shared,
                               cudaStream_t s)
{
    (void)grid, (void)block, (void)arguments, (void)shared;
    return launch(kernel, s);
}
cudaError_t cudaLaunchKernel(const void *function, dim3 grid, dim3 block, void **arguments, size_t shared,
                             cudaStream_t s)
{
    (void)grid, (void)block, (void)arguments, (void)shared;
    return launch(function, s);
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *config, const void *function, void **arguments)
{
    return (void)arguments, launch(function, config->stream);
}
cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *attributes, const void *function)
{
    (void)function;
    *attributes =
        (struct cudaFuncAttributes){.maxThreadsPerBlock = 1024, .binaryVersion = 90, .ptxVersion = 90};
    return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void *function, enum cudaFuncAttribute attribute, int value)
{
    return (void)function, (void)attribute, (void)value, cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *function,
                                                                   int size, size_t shared, unsigned flags)
{
    (void)function, (void)size, (void)shared, (void)flags;
    return *blocks = 2, cudaSuccess;
}

/* ---- the rest of the driver, which torch looks up and does not call here ---- */

cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **function, unsigned version,
                                             unsigned long long flags,
                                             enum cudaDriverEntryPointQueryResult *result)
{
    (void)name, (void)version, (void)flags;
    *function = NULL;
    if (result)
        *result = cudaDriverEntryPointSymbolNotFound;
    return cudaSuccess;
}

int cuDevicePrimaryCtxGetState(int gpu, unsigned *flags, int *is_active)
{
    return (void)gpu, *flags = 0, *is_active = 1, 0;
}

#define NOT_CALLED(name)                                                                                     \
    int name(void) { return note("wait: " #name), 999; }
NOT_CALLED(cuCtxFromGreenCtx)
NOT_CALLED(cuCtxGetCurrent)
NOT_CALLED(cuCtxPopCurrent)
NOT_CALLED(cuCtxPushCurrent)
NOT_CALLED(cuCtxSetCurrent)
NOT_CALLED(cuDevResourceGenerateDesc)
NOT_CALLED(cuDevSmResourceSplitByCount)
NOT_CALLED(cuDeviceGet)
NOT_CALLED(cuDeviceGetAttribute)
NOT_CALLED(cuDeviceGetDevResource)
NOT_CALLED(cuDevicePrimaryCtxRetain)
NOT_CALLED(cuFuncGetAttribute)
NOT_CALLED(cuFuncSetAttribute)
NOT_CALLED(cuFuncSetCacheConfig)
NOT_CALLED(cuGetErrorString)
NOT_CALLED(cuGreenCtxCreate)
NOT_CALLED(cuGreenCtxDestroy)
NOT_CALLED(cuGreenCtxStreamCreate)
NOT_CALLED(cuLaunchCooperativeKernel)
NOT_CALLED(cuLaunchKernel)
NOT_CALLED(cuLinkAddData_v2)
NOT_CALLED(cuLinkComplete)
NOT_CALLED(cuLinkCreate_v2)
NOT_CALLED(cuMemAddressFree)
NOT_CALLED(cuMemAddressReserve)
NOT_CALLED(cuMemCreate)
NOT_CALLED(cuMemExportToShareableHandle)
NOT_CALLED(cuMemGetAllocationGranularity)
NOT_CALLED(cuMemGetAllocationPropertiesFromHandle)
NOT_CALLED(cuMemImportFromShareableHandle)
NOT_CALLED(cuMemMap)
NOT_CALLED(cuMemRelease)
NOT_CALLED(cuMemRetainAllocationHandle)
NOT_CALLED(cuMemSetAccess)
NOT_CALLED(cuMemUnmap)
NOT_CALLED(cuMemsetD32Async)
NOT_CALLED(cuModuleGetFunction)
NOT_CALLED(cuModuleLoad)
NOT_CALLED(cuModuleLoadData)
NOT_CALLED(cuModuleLoadDataEx)
NOT_CALLED(cuModuleUnload)
NOT_CALLED(cuMulticastAddDevice)
NOT_CALLED(cuMulticastBindMem)
NOT_CALLED(cuMulticastCreate)
NOT_CALLED(cuMulticastUnbind)
NOT_CALLED(cuOccupancyMaxActiveBlocksPerMultiprocessor)
NOT_CALLED(cuStreamWriteValue32)
NOT_CALLED(cuTensorMapEncodeTiled)
