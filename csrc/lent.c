#include "lent.h"

#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "optplug.h"

struct lent {
    char *name;
    size_t value; /* its bytes */
    size_t data_bytes, grad_bytes;
    void *data, *grad;
    struct lent *next;
};

/* The dtypes for which there is an opt_step_..., and the bytes of a value. */
static size_t bytes_of(const char *dtype)
{
    return strcmp(dtype, "float64") == 0 ? 8 : strcmp(dtype, "float32") == 0 ? 4 : 0;
}

/* Work out how many bytes an array spans, from its first value to its last.  Of sizes and strides that are
 * negative Python says what is wrong, and looks at no memory: one value will do. */
static int span(const char *name, size_t value, int ndim, const int64_t *shape, const int64_t *strides,
                size_t *bytes)
{
    int64_t last = 0, row_major = 1, step, total;
    int wrong = 0;
    *bytes = value;
    for (int i = ndim - 1; i >= 0; i--) {
        if (shape[i] < 0 || (strides && strides[i] < 0))
            return OPT_OK;
        wrong |= __builtin_mul_overflow(shape[i] - 1, strides ? strides[i] : row_major, &step);
        wrong |= __builtin_add_overflow(last, step, &last);
        wrong |= __builtin_mul_overflow(row_major, shape[i], &row_major);
    }
    wrong |= __builtin_add_overflow(last, 1, &total);
    wrong |= __builtin_mul_overflow(total, (int64_t)value, &total);
    if (wrong)
        return fail(OPT_EINVAL, "parameter '%.200s': there can be no array of this shape and these strides",
                    name);
    *bytes = (size_t)total;
    return OPT_OK;
}

int lent_make(const char *name, const char *dtype, int ndim, const int64_t *shape, const int64_t *strides,
              const int64_t *grad_strides, struct lent **made)
{
    size_t value = bytes_of(dtype), data_bytes, grad_bytes;
    if (value == 0)
        return fail(
            OPT_EINVAL,
            "data and grad must not be NULL for dtype '%.200s': arrays come with a step where they are "
            "float64 (opt_step_f64) or float32 (opt_step_f32)",
            dtype);
    int status = span(name, value, ndim, shape, strides, &data_bytes);
    if (status == OPT_OK)
        status = span(name, value, ndim, shape, grad_strides, &grad_bytes);
    if (status < 0)
        return status;
    struct lent *lent = calloc(1, sizeof *lent);
    if (lent) {
        *lent = (struct lent){strdup(name),          value, data_bytes, grad_bytes, calloc(1, data_bytes),
                              calloc(1, grad_bytes), NULL};
        if (lent->name && lent->data && lent->grad) {
            *made = lent;
            return OPT_OK;
        }
    }
    lent_free(lent);
    return fail(OPT_ENOMEM, "out of memory: parameter '%.200s' takes %zu bytes", name,
                data_bytes + grad_bytes);
}

void *lent_data(const struct lent *lent) { return lent->data; }

void *lent_grad(const struct lent *lent) { return lent->grad; }

const char *lent_name(const struct lent *lent) { return lent->name; }

static struct lent **find(struct lent **list, const char *name)
{
    while (*list && strcmp((*list)->name, name) != 0)
        list = &(*list)->next;
    return list;
}

void lent_put(struct lent **list, struct lent *lent)
{
    struct lent **place = find(list, lent->name), *old = *place;
    *place = lent;
    if (old) {
        lent->next = old->next;
        old->next = NULL;
        lent_free(old);
    }
}

void lent_remove(struct lent **list, const char *name)
{
    struct lent **place = find(list, name), *old = *place;
    if (old) {
        *place = old->next;
        old->next = NULL;
        lent_free(old);
    }
}

void lent_free(struct lent *list)
{
    while (list) {
        struct lent *next = list->next;
        free(list->name);
        free(list->data);
        free(list->grad);
        free(list);
        list = next;
    }
}

int lent_check(const struct lent *list, const char *dtype)
{
    if (!list)
        return fail(OPT_ESTATE, "no parameter is without arrays: opt_step steps what is bound");
    for (; list; list = list->next)
        if (list->value != bytes_of(dtype))
            return fail(OPT_EINVAL,
                        "parameter '%.200s' is not %s: arrays come with a step where all are of one dtype",
                        list->name, dtype);
    return OPT_OK;
}

void lent_copy_in(struct lent *list, const void *data, const void *grad)
{
    const char *from = data, *from_grad = grad;
    for (; list; list = list->next) {
        memcpy(list->data, from, list->data_bytes);
        memcpy(list->grad, from_grad, list->grad_bytes);
        from += list->data_bytes;
        from_grad += list->grad_bytes;
    }
}

void lent_copy_out(const struct lent *list, void *data)
{
    char *to = data;
    for (; list; list = list->next) {
        memcpy(to, list->data, list->data_bytes);
        to += list->data_bytes;
    }
}
