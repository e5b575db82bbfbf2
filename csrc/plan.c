/* torch's functions are found with dlsym, since liboptplug links no torch.
 *
 * torch's stable ABI (torch/csrc/stable/c/shim.h) takes an operator by its name, and its arguments boxed;
 * that costs 1 to 2 microseconds and a tenth for each tensor.  So an operator that has run that way once
 * is called by its own entry from then on, where libtorch_cpu exports that: a C++ function, whose mangled
 * name says which arguments it takes, all of them words and doubles. */
#define _GNU_SOURCE
#include "plan.h"

#include <dlfcn.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "error.h"
#include "host.h"
#include "optplug.h"

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
#define GPU_FUNCTIONS(F)                                                                                     \
    F(int, aoti_torch_create_cuda_stream_guard, (void *stream, int32_t device, void **guard))                \
    F(int, aoti_torch_delete_cuda_stream_guard, (void *guard))

#define DECLARE(result, name, arguments) result(*name) arguments;
static struct {
    TORCH_FUNCTIONS(DECLARE)
    GPU_FUNCTIONS(DECLARE)
    int32_t (*aoti_torch_device_type_cuda)(void);
    int has_gpu;                      /* whether these are there */
    void *(*new_memory)(size_t size); /* C++'s operator new, since torch deletes what is made with it */
    bool (*any_modes_set)(bool skip_torchs_own); /* in this thread; NULL: unknown */
} torch;
static void *_Atomic torch_library;

enum { MAX_LISTS = 7, MAX_SCALARS = 8, MAX_SINGLES = 2 };

/* An operator's own entry.  The calling conventions of x86-64 and AArch64 put words and doubles in places
 * of their own, each in their order, and let a caller give more of them than are wanted.  A list is two
 * words, and since lists come first and the registers are 6 or 8, none is split.  A bool on the stack is a
 * word as well, but on AArch64 under Linux only.
 *
 * An exception would pass through us and end the host.  There is none where the same call has gone well
 * before, unless this thread is under a mode of torch's that only a Python sets. */
enum { MAX_WORDS = 16 };
typedef void (*entry)(boxed, boxed, boxed, boxed, boxed, boxed, boxed, boxed, boxed, boxed, boxed, boxed,
                      boxed, boxed, boxed, boxed, double, double, double, double, double, double, double,
                      double);

struct list {
    int length;
    optplug_tensor *memory;
    tensor_handle *handles;
    void **tensors; /* the same, as C++ has them: an at::Tensor is a pointer */
};

/* What AOTInductor's libraries have in them (torch/csrc/inductor/aoti_runtime/interface.h). */
#define KERNEL_FUNCTIONS(F)                                                                                  \
    F(int, AOTInductorModelContainerCreateWithDevice,                                                        \
      (void **container, size_t models, const char *device, const char *cubin_folder))                       \
    F(int, AOTInductorModelContainerDelete, (void *container))                                               \
    F(int, AOTInductorModelContainerRun,                                                                     \
      (void *container, tensor_handle *inputs, size_t input_count, tensor_handle *outputs,                   \
       size_t output_count, void *stream, void *proxy_executor))

struct kernel {
    KERNEL_FUNCTIONS(DECLARE)
    void *library, *container;
    tensor_handle rate; /* of the operation's scalar */
};

struct operation {
    optplug_operator form; /* without its pointers */
    char name[64];         /* "aten::_fused_adam_"; a kernel has none */
    char overload[16];
    struct list lists[MAX_LISTS];
    double scalars[MAX_SCALARS];
    struct list singles;             /* those that are there: NULL in the place of one that is not */
    boxed optionals[MAX_SINGLES][2]; /* the same, each as a std::optional */
    entry entry;                     /* NULL: boxed only */
    struct kernel kernel;
    boxed words[MAX_WORDS];
};

struct plan {
    pid_t process; /* that has made it */
    int on_gpu;
    int minds_modes; /* of PyTorch's, that a host may have on */
    int proven;      /* has run boxed, which turns torch's exceptions into errors */
    int count;
    struct operation operations[];
};

int plan_open_torch(const char *library, const char *gpu_library)
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
    torch_library = opened;
    torch.aoti_torch_device_type_cuda = (int32_t (*)(void))dlsym(opened, "aoti_torch_device_type_cuda");
    opened = dlopen(gpu_library, RTLD_NOW | RTLD_NOLOAD);
    if (!opened)
        return 1;
    GPU_FUNCTIONS(LOOK_UP)
#undef LOOK_UP
    torch.has_gpu = found && torch.aoti_torch_device_type_cuda;
    return 1;
}

void *plan_torch_library(void) { return torch_library; }

int plan_enter_thread(void)
{
    uint32_t count;
    return torch_library && torch.torch_get_num_threads(&count) == 0;
}

/* ---- making a plan ---- */

static int32_t dtype_number(const char *dtype)
{
    char name[64];
    snprintf(name, sizeof name, "aoti_torch_dtype_%s", dtype);
    int32_t (*number)(void) = (int32_t (*)(void))dlsym(torch_library, name);
    return number ? number() : -1;
}

/* Make a tensor over the memory that is given; 0 if that fails. */
static int make_tensor(tensor_handle *tensor, const optplug_tensor *given)
{
    const int64_t stride = 1;
    int32_t dtype = dtype_number(given->dtype);
    int32_t type = given->gpu < 0 ? torch.aoti_torch_device_type_cpu() : torch.aoti_torch_device_type_cuda();
    return dtype >= 0 &&
           torch.aoti_torch_create_tensor_from_blob(given->data, 1, &given->n, &stride, 0, dtype, type,
                                                    given->gpu < 0 ? 0 : given->gpu, tensor) == 0;
}

/* Fill in a list with tensors over the memory that is given; 0 if that fails. */
static int make_list(struct list *list, const optplug_tensor *given, int length)
{
    size_t room = (size_t)length + 1; /* never for nothing at all */
    list->memory = calloc(room, sizeof *list->memory);
    list->handles = calloc(room, sizeof *list->handles);
    list->tensors = calloc(room, sizeof *list->tensors);
    if (!list->memory || !list->handles || !list->tensors)
        return 0;
    for (int i = 0; i < length; i++) {
        if (given[i].dtype) {
            if (!make_tensor(&list->handles[i], &given[i]))
                return 0;
            list->tensors[i] = *(void **)list->handles[i];
        }
        list->memory[i] = given[i];
        list->length++;
    }
    return 1;
}

/* Tell whether a handle points to what C++ has: two handles of one tensor then hold the same pointer. */
static int is_as_known(tensor_handle tensor)
{
    tensor_handle copy;
    if (torch.aoti_torch_new_tensor_handle(tensor, &copy) != 0)
        return 0;
    int same = *(void **)tensor && *(void **)tensor == *(void **)copy;
    torch.aoti_torch_delete_tensor_object(copy);
    return same;
}

/* Find at::cpu::NAME(ArrayRef<Tensor>..., double..., bool..., optional<Tensor> const &, the same).
 *
 * On a GPU there is none that could be called: an error of the host's own kernels comes up at any later
 * launch, as an exception. */
static entry find_entry(const struct operation *operation)
{
#if defined __x86_64__ || (defined __aarch64__ && defined __linux__)
    const optplug_operator *form = &operation->form;
    if (form->gpu >= 0 || !form->optional || form->singles != 2)
        return NULL;
    if (operation->lists[0].length == 0 || !is_as_known(operation->lists[0].handles[0]))
        return NULL;
    const char *name = strrchr(operation->name, ':') + 1;
    char symbol[256];
    snprintf(symbol, sizeof symbol,
             "_ZN2at3cpu%zu%sEN3c108ArrayRefINS_6TensorEEE%.*s%.*s%.*sRKSt8optionalIS3_ES8_", strlen(name),
             name, 3 * (form->lists - 1), "S4_S4_S4_S4_S4_S4_", form->doubles, "dddddddd", form->bools,
             "bbbbbbbb");
    return (entry)dlsym(torch_library, symbol);
#else
    (void)operation;
    return NULL;
#endif
}

/* Take over the doubles and bools, and write down the words that the entry is called with. */
static void set_scalars(struct operation *operation, const double *scalars)
{
    const optplug_operator *form = &operation->form;
    memcpy(operation->scalars, scalars, (size_t)(form->doubles + form->bools) * sizeof *scalars);
    boxed *word = operation->words;
    for (int i = 0; i < form->lists; i++) {
        *word++ = (boxed)(uintptr_t)operation->lists[i].tensors;
        *word++ = (boxed)operation->lists[i].length;
    }
    for (int i = 0; i < form->bools; i++)
        *word++ = scalars[form->doubles + i] != 0;
    for (int i = 0; i < form->singles; i++)
        *word++ = (boxed)(uintptr_t)operation->optionals[i];
}

/* Load a kernel; 0 if that fails. */
static int load_kernel(struct operation *operation, const char *file)
{
    struct kernel *kernel = &operation->kernel;
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
           torch.aoti_torch_create_tensor_from_blob(
               operation->scalars, 0, NULL, NULL, 0, dtype_number("float64"),
               torch.aoti_torch_device_type_cpu(), 0, &kernel->rate) == 0;
}

/* Fill in an operation; 0 if that fails. */
static int make_operation(struct operation *operation, const optplug_operator *given, int stable)
{
    if (given->gpu >= 0 && !torch.has_gpu)
        return 0;
    if (given->lists < 1 || given->lists > MAX_LISTS || given->doubles + given->bools > MAX_SCALARS ||
        given->singles > MAX_SINGLES || 2 * given->lists + given->bools + given->singles > MAX_WORDS)
        return 0;
    operation->form = *given;
    operation->form.name = NULL;
    operation->form.overload = NULL;
    operation->form.lengths = NULL;
    operation->form.tensors = NULL;
    operation->form.scalars = NULL;
    if (!given->is_kernel)
        snprintf(operation->name, sizeof operation->name, "%s", given->name);
    snprintf(operation->overload, sizeof operation->overload, "%s", given->overload);
    const optplug_tensor *tensors = given->tensors;
    for (int i = 0; i < given->lists; tensors += given->lengths[i++])
        if (!make_list(&operation->lists[i], tensors, given->lengths[i]))
            return 0;
    if (!make_list(&operation->singles, tensors, given->singles))
        return 0;
    for (int i = 0; i < given->singles; i++) {
        operation->optionals[i][0] = (boxed)(uintptr_t)operation->singles.tensors[i];
        operation->optionals[i][1] = operation->singles.tensors[i] != NULL;
    }
    set_scalars(operation, given->scalars);
    if (given->is_kernel)
        return load_kernel(operation, given->name);
    operation->entry = stable ? NULL : find_entry(operation);
    return 1;
}

struct plan *plan_new(const optplug_operator *operators, int count, int stable, int minds_modes)
{
    struct plan *plan = calloc(1, sizeof *plan + (size_t)count * sizeof *plan->operations);
    if (!plan)
        return NULL;
    plan->count = count;
    plan->process = getpid();
    plan->minds_modes = minds_modes && torch.any_modes_set;
    for (int i = 0; i < count; i++) {
        plan->on_gpu |= operators[i].gpu >= 0;
        if (!make_operation(&plan->operations[i], &operators[i], stable)) {
            plan_free(plan);
            return NULL;
        }
    }
    return plan;
}

static void free_list(struct list *list)
{
    for (int i = 0; i < list->length; i++)
        if (list->handles[i])
            torch.aoti_torch_delete_tensor_object(list->handles[i]);
    free(list->memory);
    free(list->handles);
    free(list->tensors);
}

void plan_free(struct plan *plan)
{
    for (int i = 0; plan && i < plan->count; i++) {
        for (int j = 0; j < MAX_LISTS; j++)
            free_list(&plan->operations[i].lists[j]);
        free_list(&plan->operations[i].singles);
    }
    for (int i = 0; plan && i < plan->count; i++) {
        struct kernel *kernel = &plan->operations[i].kernel;
        if (kernel->rate)
            torch.aoti_torch_delete_tensor_object(kernel->rate);
        if (kernel->container)
            kernel->AOTInductorModelContainerDelete(kernel->container);
        if (kernel->library)
            dlclose(kernel->library);
    }
    free(plan);
}

void plan_set_scalars(struct plan *plan, int index, const double *scalars)
{
    if (index < plan->count)
        set_scalars(&plan->operations[index], scalars);
}

/* ---- running it ---- */

/* Tell whether no value has the bits of an infinity in its exponent, as infinities and nans do. */
static int is_finite(const optplug_tensor *memory, const optplug_operator *form)
{
    const uint16_t *x16 = memory->data, infinity16 = (uint16_t)form->infinity;
    const uint32_t *x32 = memory->data, infinity32 = (uint32_t)form->infinity;
    const uint64_t *x64 = memory->data, infinity64 = form->infinity;
    int bad = 0;
    if (form->bytes == 2)
        for (int64_t i = 0; i < memory->n; i++)
            bad |= (x16[i] & infinity16) == infinity16;
    else if (form->bytes == 4)
        for (int64_t i = 0; i < memory->n; i++)
            bad |= (x32[i] & infinity32) == infinity32;
    else
        for (int64_t i = 0; i < memory->n; i++)
            bad |= (x64[i] & infinity64) == infinity64;
    return !bad;
}

static int is_guarded_and_bad(const struct operation *operation)
{
    if (operation->form.gradients < 0)
        return 0;
    const struct list *list = &operation->lists[operation->form.gradients];
    for (int i = 0; operation->form.bytes && i < list->length; i++)
        if (!is_finite(&list->memory[i], &operation->form))
            return 1;
    return 0;
}

/* Return what the step counts are to fall by, since the step was left out. */
static float left_out(const struct operation *operation)
{
    int last = operation->form.singles - 1;
    const float *value =
        operation->form.counters >= 0 && last >= 0 ? operation->singles.memory[last].data : NULL;
    return value ? *value : 0;
}

/* Raise the step counts, as torch does before its kernels. */
static void count_step(const struct operation *operation, float by)
{
    if (operation->form.counters < 0 || by == 0)
        return;
    const struct list *list = &operation->lists[operation->form.counters];
    for (int i = 0; i < list->length; i++)
        *(float *)list->memory[i].data += by;
}

static int run_entry(const struct operation *operation)
{
    const boxed *w = operation->words;
    const double *d = operation->scalars;
    operation->entry(w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7], w[8], w[9], w[10], w[11], w[12], w[13],
                     w[14], w[15], d[0], d[1], d[2], d[3], d[4], d[5], d[6], d[7]);
    return 1;
}

/* Make a list that the call will consume; NULL if memory runs out. */
static void *box_list(const struct list *list)
{
    void *box = NULL;
    int failed = torch.torch_new_list_reserve_size((size_t)list->length, &box) != 0;
    for (int i = 0; !failed && i < list->length; i++) {
        tensor_handle copy = NULL;
        failed = torch.aoti_torch_new_tensor_handle(list->handles[i], &copy) != 0 ||
                 torch.torch_list_push_back(box, (boxed)(uintptr_t)copy) != 0;
    }
    return failed ? NULL : box;
}

/* Make a tensor that the call will consume, as an optional one if `optional`; 0 if memory runs out. */
static int box_single(tensor_handle tensor, int optional, boxed *box)
{
    tensor_handle copy = NULL;
    *box = 0;
    if (!tensor)
        return 1;
    if (torch.aoti_torch_new_tensor_handle(tensor, &copy) != 0)
        return 0;
    *box = (boxed)(uintptr_t)copy;
    if (optional) {
        boxed *held = torch.new_memory(sizeof *held);
        *held = *box;
        *box = (boxed)(uintptr_t)held;
    }
    return 1;
}

static int run_boxed(const struct operation *operation)
{
    const optplug_operator *form = &operation->form;
    boxed stack[MAX_LISTS + MAX_SCALARS + MAX_SINGLES];
    boxed *next = stack;
    for (int i = 0; i < form->lists; i++) {
        void *box = box_list(&operation->lists[i]);
        if (!box)
            return 0;
        *next++ = (boxed)(uintptr_t)box;
    }
    memcpy(next, operation->scalars, (size_t)form->doubles * sizeof *next);
    next += form->doubles;
    for (int i = 0; i < form->bools; i++)
        *next++ = operation->scalars[form->doubles + i] != 0;
    for (int i = 0; i < form->singles; i++)
        if (!box_single(operation->singles.handles[i], form->optional, next++))
            return 0;
    void *guard = NULL;
    if (form->has_stream && torch.aoti_torch_create_cuda_stream_guard(form->stream, form->gpu, &guard) != 0)
        return 0;
    int status = torch.torch_call_dispatcher(operation->name, operation->overload, stack,
                                             torch.aoti_torch_abi_version());
    if (guard)
        torch.aoti_torch_delete_cuda_stream_guard(guard);
    return status == 0;
}

static int run_kernel(const struct operation *operation)
{
    const optplug_operator *form = &operation->form;
    const struct kernel *kernel = &operation->kernel;
    for (int i = 0; i < operation->lists[0].length; i++) {
        tensor_handle inputs[MAX_LISTS + 1]; /* consumed by the call */
        int failed = torch.aoti_torch_new_tensor_handle(kernel->rate, &inputs[form->lists]) != 0;
        for (int j = 0; !failed && j < form->lists; j++)
            failed = torch.aoti_torch_new_tensor_handle(operation->lists[j].handles[i], &inputs[j]) != 0;
        if (failed || kernel->AOTInductorModelContainerRun(kernel->container, inputs, (size_t)form->lists + 1,
                                                           NULL, 0, NULL, NULL) != 0)
            return 0;
    }
    return 1;
}

static int run_operation(const struct plan *plan, const struct operation *operation)
{
    if (operation->form.is_kernel)
        return run_kernel(operation);
    return plan->proven && operation->entry ? run_entry(operation) : run_boxed(operation);
}

int plan_run(struct plan *plan)
{
    if (plan->on_gpu && getpid() != plan->process)
        return 0; /* Python says that no GPU survives a fork */
    if (plan->minds_modes && torch.any_modes_set(false))
        return 0; /* Python puts a host's modes aside, such as FakeTensorMode */
    for (int i = 0; i < plan->count; i++)
        if (is_guarded_and_bad(&plan->operations[i]))
            return 0; /* Python says whose gradient it is */
    int threads = host_thread_count(0);
    for (int i = 0; i < plan->count; i++) {
        const struct operation *operation = &plan->operations[i];
        host_thread_count(operation->form.alone ? 1 : threads);
        count_step(operation, 1);
        if (run_operation(plan, operation)) {
            count_step(operation, -left_out(operation));
            continue;
        }
        count_step(operation, -1);
        host_clear_exception();
        return fail(OPT_ERUNTIME, "torch did not run %s, though it did the step before",
                    operation->form.is_kernel ? "a compiled kernel" : operation->name);
    }
    plan->proven = 1;
    return 1;
}
