/* Kernels that torch has compiled for optplug: a library each, of one tensor of each list and of one double.
 */
#ifndef OPTPLUG_KERNEL_H
#define OPTPLUG_KERNEL_H

#include "list.h"

/* What AOTInductor's libraries have in them (torch/csrc/inductor/aoti_runtime/interface.h). */
#define KERNEL_FUNCTIONS(F)                                                                                  \
    F(int, AOTInductorModelContainerCreateWithDevice,                                                        \
      (void **container, size_t models, const char *device, const char *cubin_folder))                       \
    F(int, AOTInductorModelContainerDelete, (void *container))                                               \
    F(int, AOTInductorModelContainerRun,                                                                     \
      (void *container, tensor_handle *inputs, size_t input_count, tensor_handle *outputs,                   \
       size_t output_count, void *stream, void *proxy_executor))

struct kernel {
    KERNEL_FUNCTIONS(TORCH_FUNCTION)
    void *library, *container;
    tensor_handle rate; /* the scalar that it takes, as a tensor */
};

/* Load a kernel, which reads *scalar each time that it runs; 0 if that fails.  kernel_free takes one that is
 * loaded in part. */
int kernel_load(struct kernel *kernel, const char *file, double *scalar);
void kernel_free(struct kernel *kernel);

/* Run it on each tensor of the lists in turn; 0 if that fails. */
int kernel_run(const struct kernel *kernel, const struct list *lists, int count);

#endif
