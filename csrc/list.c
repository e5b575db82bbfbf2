#include "list.h"

#include <stdlib.h>

/* Make a tensor over the memory that is given; 0 if that fails. */
static int make_tensor(tensor_handle *tensor, const optplug_tensor *given)
{
    const int64_t stride = 1;
    int32_t dtype = torch_dtype(given->dtype);
    int32_t type = given->gpu < 0 ? torch.aoti_torch_device_type_cpu() : torch.aoti_torch_device_type_cuda();
    return dtype >= 0 &&
           torch.aoti_torch_create_tensor_from_blob(given->data, 1, &given->n, &stride, 0, dtype, type,
                                                    given->gpu < 0 ? 0 : given->gpu, tensor) == 0;
}

int list_make(struct list *list, const optplug_tensor *given, int length)
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

void list_free(struct list *list)
{
    for (int i = 0; i < list->length; i++)
        if (list->handles[i])
            torch.aoti_torch_delete_tensor_object(list->handles[i]);
    free(list->memory);
    free(list->handles);
    free(list->tensors);
}

void *list_box(const struct list *list)
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

int list_box_single(tensor_handle tensor, int optional, boxed *box)
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
