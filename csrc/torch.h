/* torch's C functions, found with dlsym, since liboptplug links no torch: its stable ABI
 * (torch/csrc/stable/c/shim.h and torch/csrc/inductor/aoti_torch/c/shim.h). */
#ifndef OPTPLUG_TORCH_H
#define OPTPLUG_TORCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef uint64_t boxed; /* StableIValue */
typedef struct tensor *tensor_handle;

#define TORCH_FUNCTIONS(F)                                                                                   \
    F(int, torch_call_dispatcher, (const char *name, const char *overload, boxed *stack, uint64_t version))  \
    F(int, torch_new_list_reserve_size, (size_t size, void **list))                                          \
    F(int, torch_list_push_back, (void *list, boxed value))                                                  \
    F(int, torch_get_num_threads, (uint32_t *count))                                                         \
    F(int, aoti_torch_new_tensor_handle, (tensor_handle tensor, tensor_handle * copy))                       \
    F(int, aoti_torch_delete_tensor_object, (tensor_handle tensor))                                          \
    F(int, aoti_torch_create_tensor_from_blob,                                                               \
      (void *data, int64_t ndim, const int64_t *sizes, const int64_t *strides, int64_t offset,               \
       int32_t dtype, int32_t device_type, int32_t device_index, tensor_handle *tensor))                     \
    F(int32_t, aoti_torch_device_type_cpu, (void))                                                           \
    F(uint64_t, aoti_torch_abi_version, (void))

/* Those of its library for a GPU, which for AMD's may lack them: Python makes the steps then. */
#define TORCH_GPU_FUNCTIONS(F)                                                                               \
    F(int, aoti_torch_create_cuda_stream_guard, (void *stream, int32_t device, void **guard))                \
    F(int, aoti_torch_delete_cuda_stream_guard, (void *guard))

/* A function's declaration, for a table of them. */
#define TORCH_FUNCTION(result, name, arguments) result(*name) arguments;

extern struct torch {
    TORCH_FUNCTIONS(TORCH_FUNCTION)
    TORCH_GPU_FUNCTIONS(TORCH_FUNCTION)
    int32_t (*aoti_torch_device_type_cuda)(void);
    int has_gpu;                      /* whether these are there */
    void *(*new_memory)(size_t size); /* C++'s operator new, since torch deletes what is made with it */
    bool (*any_modes_set)(bool skip_torchs_own); /* in this thread; NULL: unknown */
    int8_t (*default_dtype)(void);               /* NULL: unknown */
} torch;

/* Find them in torch's library, and those for a GPU in another one, which are loaded already; 0 if one of the
 * first is missing, and then there are no plans; without the others there are none on GPUs. */
int torch_open(const char *library, const char *gpu_library);

/* Return torch's library, for dlsym; NULL where torch_open has not succeeded. */
void *torch_library(void);

/* Let torch set this thread's OpenMP count, as it does by itself before a thread's first loop; 0 where
 * torch_open has not succeeded. */
int torch_enter_thread(void);

/* Return torch's number for a dtype; negative if it has none. */
int32_t torch_dtype(const char *name);

#endif
