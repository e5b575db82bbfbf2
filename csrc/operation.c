/* torch's stable ABI takes an operator by its name, and its arguments boxed; that costs 1 to 2 microseconds
 * and a tenth for each tensor.  So an operator that has run that way once is called by its own entry from
 * then on, where libtorch_cpu exports that: a C++ function, whose mangled name says which arguments it takes,
 * all of them words and doubles. */
#define _GNU_SOURCE
#include "operation.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

/* ---- making it ---- */

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
    return (entry)dlsym(torch_library(), symbol);
#else
    (void)operation;
    return NULL;
#endif
}

/* The words that the entry is called with are written down as well. */
void operation_set_scalars(struct operation *operation, const double *scalars)
{
    const optplug_operator *form = &operation->form;
    memcpy(operation->scalars, scalars, (size_t)(form->doubles + form->bools) * sizeof *scalars);
    if (form->record_count > 0)
        return;
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

int operation_make(struct operation *operation, const optplug_operator *given, const double *scalars,
                   int stable)
{
    if ((given->gpu >= 0 && !torch.has_gpu) || given->lists < 1)
        return 0;
    if (given->record_count > 0 ? given->doubles > MAX_OPTIONS
                                : given->lists > MAX_LISTS || given->doubles + given->bools > MAX_SCALARS ||
                                      given->singles > MAX_SINGLES ||
                                      2 * given->lists + given->bools + given->singles > MAX_WORDS)
        return 0;
    operation->form = *given;
    operation->form.name = NULL;
    operation->form.overload = NULL;
    operation->form.lengths = NULL;
    operation->form.tensors = NULL;
    operation->form.records = NULL;
    snprintf(operation->name, sizeof operation->name, "%s", given->name);
    snprintf(operation->overload, sizeof operation->overload, "%s", given->overload);
    if (given->record_count > 0) {
        operation_set_scalars(operation, scalars);
        operation->records = records_make(given);
        return operation->records != NULL;
    }
    const optplug_tensor *tensors = given->tensors;
    for (int i = 0; i < given->lists; tensors += given->lengths[i++])
        if (!list_make(&operation->lists[i], tensors, given->lengths[i]))
            return 0;
    if (!list_make(&operation->singles, tensors, given->singles))
        return 0;
    for (int i = 0; i < given->singles; i++) {
        operation->optionals[i][0] = (boxed)(uintptr_t)operation->singles.tensors[i];
        operation->optionals[i][1] = operation->singles.tensors[i] != NULL;
    }
    operation_set_scalars(operation, scalars);
    operation->entry = stable ? NULL : find_entry(operation);
    return 1;
}

void operation_free(struct operation *operation)
{
    for (int i = 0; i < MAX_LISTS; i++)
        list_free(&operation->lists[i]);
    list_free(&operation->singles);
    records_free(operation->records);
}

int operation_scalar_count(const struct operation *operation)
{
    return operation->form.doubles + operation->form.bools;
}

/* ---- running it ---- */

/* Tell whether no value has the bits of an infinity in its exponent, as infinities and nans do. */
static int is_finite(const void *values, int64_t n, const void *context)
{
    const optplug_operator *form = context;
    const uint16_t *x16 = values, infinity16 = (uint16_t)form->infinity;
    const uint32_t *x32 = values, infinity32 = (uint32_t)form->infinity;
    const uint64_t *x64 = values, infinity64 = form->infinity;
    int bad = 0;
    if (form->bytes == 2)
        for (int64_t i = 0; i < n; i++)
            bad |= (x16[i] & infinity16) == infinity16;
    else if (form->bytes == 4)
        for (int64_t i = 0; i < n; i++)
            bad |= (x32[i] & infinity32) == infinity32;
    else
        for (int64_t i = 0; i < n; i++)
            bad |= (x64[i] & infinity64) == infinity64;
    return !bad;
}

/* Tell whether all values are finite that are to be. */
static int are_finite(const struct operation *operation)
{
    const optplug_operator *form = &operation->form;
    if (form->gradients < 0 || !form->bytes)
        return 1;
    if (operation->records)
        return records_all(operation->records, form->gradients, is_finite, form);
    const struct list *list = &operation->lists[form->gradients];
    for (int i = 0; i < list->length; i++)
        if (!is_finite(list->memory[i].data, list->memory[i].n, form))
            return 0;
    return 1;
}

int operation_prepare(struct operation *operation)
{
    return are_finite(operation) &&
           (!operation->records || records_prepare(operation->records, operation->scalars));
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

static int run_boxed(const struct operation *operation)
{
    const optplug_operator *form = &operation->form;
    boxed stack[MAX_LISTS + MAX_SCALARS + MAX_SINGLES];
    boxed *next = stack;
    for (int i = 0; i < form->lists; i++) {
        void *box = list_box(&operation->lists[i]);
        if (!box)
            return 0;
        *next++ = (boxed)(uintptr_t)box;
    }
    memcpy(next, operation->scalars, (size_t)form->doubles * sizeof *next);
    next += form->doubles;
    for (int i = 0; i < form->bools; i++)
        *next++ = operation->scalars[form->doubles + i] != 0;
    for (int i = 0; i < form->singles; i++)
        if (!list_box_single(operation->singles.handles[i], form->optional, next++))
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

/* A call by name has been seen to take 700 bytes, and 45 for each tensor. */
enum { ROOM = 8192, ROOM_FOR_EACH = 128 };

size_t operation_room(const struct operation *operation, int proven)
{
    if (operation->records || (proven && operation->entry))
        return 0;
    size_t tensors = (size_t)operation->form.singles;
    for (int i = 0; i < operation->form.lists; i++)
        tensors += (size_t)operation->lists[i].length;
    return ROOM + tensors * ROOM_FOR_EACH;
}

int operation_run(const struct operation *operation, int proven)
{
    if (operation->records) {
        records_run(operation->records);
        return 1;
    }
    count_step(operation, 1);
    int done = proven && operation->entry ? run_entry(operation) : run_boxed(operation);
    count_step(operation, done ? -left_out(operation) : -1);
    return done;
}
