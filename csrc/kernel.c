#include "kernel.h"

#include <dlfcn.h>

int kernel_load(struct kernel *kernel, const char *file, double *scalar)
{
    kernel->library = dlopen(file, RTLD_NOW | RTLD_LOCAL);
    if (!kernel->library)
        return 0;
#define LOOK_UP(result, name, arguments)                                                                     \
    kernel->name = (result(*) arguments)dlsym(kernel->library, #name);                                       \
    if (!kernel->name)                                                                                       \
        return 0;
    KERNEL_FUNCTIONS(LOOK_UP)
#undef LOOK_UP
    return kernel->AOTInductorModelContainerCreateWithDevice(&kernel->container, 1, "cpu", NULL) == 0 &&
           torch.aoti_torch_create_tensor_from_blob(scalar, 0, NULL, NULL, 0, torch_dtype("float64"),
                                                    torch.aoti_torch_device_type_cpu(), 0,
                                                    &kernel->rate) == 0;
}

void kernel_free(struct kernel *kernel)
{
    if (kernel->rate)
        torch.aoti_torch_delete_tensor_object(kernel->rate);
    if (kernel->container)
        kernel->AOTInductorModelContainerDelete(kernel->container);
    if (kernel->library)
        dlclose(kernel->library);
}

int kernel_run(const struct kernel *kernel, const struct list *lists, int count)
{
    for (int i = 0; i < lists[0].length; i++) {
        tensor_handle inputs[MAX_LISTS + 1]; /* consumed by the call */
        int failed = torch.aoti_torch_new_tensor_handle(kernel->rate, &inputs[count]) != 0;
        for (int j = 0; !failed && j < count; j++)
            failed = torch.aoti_torch_new_tensor_handle(lists[j].handles[i], &inputs[j]) != 0;
        if (failed || kernel->AOTInductorModelContainerRun(kernel->container, inputs, (size_t)count + 1, NULL,
                                                           0, NULL, NULL) != 0)
            return 0;
    }
    return 1;
}
