/* Lists of tensors over the host's memory and the optimizer's state, as torch's functions take them. */
#ifndef OPTPLUG_LIST_H
#define OPTPLUG_LIST_H

#include "bridge.h"
#include "torch.h"

/* The most that an operator takes. */
enum { MAX_LISTS = 7 };

struct list {
    int length;
    optplug_tensor *memory;
    tensor_handle *handles;
    void **tensors; /* the same, as C++ has them: an at::Tensor is a pointer */
};

/* Fill in a list with tensors over the memory that is given; 0 if that fails.  list_free takes one that is
 * filled in in part. */
int list_make(struct list *list, const optplug_tensor *given, int length);
void list_free(struct list *list);

/* Make a copy that a call through torch's stable ABI will consume; NULL if memory runs out. */
void *list_box(const struct list *list);

/* The same of one tensor, as an optional one if `optional`; 0 if memory runs out. */
int list_box_single(tensor_handle tensor, int optional, boxed *box);

#endif
