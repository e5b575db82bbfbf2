#define _GNU_SOURCE
#include "torch.h"

#include <dlfcn.h>
#include <stdatomic.h>
#include <stdio.h>

struct torch torch;
static void *_Atomic opened_library;

int torch_open(const char *library, const char *gpu_library)
{
    void *opened = dlopen(library, RTLD_NOW | RTLD_NOLOAD);
    if (!opened)
        return 0;
    int found = 1;
#define LOOK_UP(result, name, arguments)                                                                     \
    torch.name = (result(*) arguments)dlsym(opened, #name);                                                  \
    found &= torch.name != NULL;
    TORCH_FUNCTIONS(LOOK_UP)
    void *new_memory =
        dlsym(RTLD_DEFAULT, "_Znwm"); /* which a host may have replaced, and then torch has it too */
    torch.new_memory = (void *(*)(size_t))(new_memory ? new_memory : dlsym(opened, "_Znwm"));
    if (!found || !torch.new_memory)
        return 0;
    torch.any_modes_set =
        (bool (*)(bool))dlsym(opened, "_ZN3c104impl20TorchDispatchModeTLS13any_modes_setEb");
    torch.default_dtype = (int8_t (*)(void))dlsym(opened, "_ZN3c1031get_default_dtype_as_scalartypeEv");
    opened_library = opened;
    torch.aoti_torch_device_type_cuda = (int32_t (*)(void))dlsym(opened, "aoti_torch_device_type_cuda");
    opened = dlopen(gpu_library, RTLD_NOW | RTLD_NOLOAD);
    if (!opened)
        return 1;
    TORCH_GPU_FUNCTIONS(LOOK_UP)
#undef LOOK_UP
    torch.has_gpu = found && torch.aoti_torch_device_type_cuda;
    return 1;
}

void *torch_library(void) { return opened_library; }

int torch_enter_thread(void)
{
    uint32_t count;
    return opened_library && torch.torch_get_num_threads(&count) == 0;
}

int32_t torch_dtype(const char *name)
{
    char function[64];
    snprintf(function, sizeof function, "aoti_torch_dtype_%s", name);
    int32_t (*number)(void) = (int32_t (*)(void))dlsym(opened_library, function);
    return number ? number() : -1;
}
