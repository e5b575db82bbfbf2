#include "staging.h"

#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "optplug.h"

struct staged {
    char *name;
    size_t value; /* its bytes */
    size_t data_bytes, grad_bytes;
    void *data, *grad;
    struct staged *next;
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
        return fail(OPT_EINVAL, "parameter '%.200s': no array can have this shape and these strides", name);
    *bytes = (size_t)total;
    return OPT_OK;
}

int staging_make(const char *name, const char *dtype, int ndim, const int64_t *shape, const int64_t *strides,
                 const int64_t *grad_strides, struct staged **made)
{
    size_t value = bytes_of(dtype), data_bytes, grad_bytes;
    if (value == 0)
        return fail(
            OPT_EINVAL,
            "data and grad must not be NULL for dtype '%.200s': only float64 and float32 arrays can be "
            "passed with each step (opt_step_f64, opt_step_f32)",
            dtype);
    int status = span(name, value, ndim, shape, strides, &data_bytes);
    if (status == OPT_OK)
        status = span(name, value, ndim, shape, grad_strides, &grad_bytes);
    if (status < 0)
        return status;
    struct staged *staged = calloc(1, sizeof *staged);
    if (staged) {
        *staged = (struct staged){strdup(name),          value, data_bytes, grad_bytes, calloc(1, data_bytes),
                                  calloc(1, grad_bytes), NULL};
        if (staged->name && staged->data && staged->grad) {
            *made = staged;
            return OPT_OK;
        }
    }
    staging_free(staged);
    return fail(OPT_ENOMEM, "out of memory: parameter '%.200s' takes %zu bytes", name,
                data_bytes + grad_bytes);
}

void *staging_data(const struct staged *staged) { return staged->data; }

void *staging_grad(const struct staged *staged) { return staged->grad; }

const char *staging_first(const struct staging *staging)
{
    return staging->first ? staging->first->name : NULL;
}

/* Take the one of this name out, if it is there, and free it; return where it was, or the end. */
static struct staged **take_out(struct staging *staging, const char *name)
{
    struct staged **place = &staging->first;
    while (*place && strcmp((*place)->name, name) != 0)
        place = &(*place)->next;
    struct staged *old = *place;
    if (old)
        *place = old->next;
    staging_free(old);
    return place;
}

void staging_put(struct staging *staging, struct staged *staged)
{
    struct staged **place = take_out(staging, staged->name);
    staged->next = *place;
    *place = staged;
}

void staging_remove(struct staging *staging, const char *name) { take_out(staging, name); }

void staging_free(struct staged *staged)
{
    if (!staged)
        return;
    free(staged->name);
    free(staged->data);
    free(staged->grad);
    free(staged);
}

void staging_clear(struct staging *staging)
{
    while (staging->first)
        staging_remove(staging, staging->first->name);
}

int staging_check(const struct staging *staging, const char *dtype)
{
    if (!staging->first)
        return fail(OPT_ESTATE, "every parameter has bound arrays: use opt_step");
    for (const struct staged *s = staging->first; s; s = s->next)
        if (s->value != bytes_of(dtype))
            return fail(OPT_EINVAL,
                        "parameter '%.200s' is not %s: all parameters without bound arrays must have this "
                        "call's dtype",
                        s->name, dtype);
    return OPT_OK;
}

void staging_copy_in(const struct staging *staging, const void *data, const void *grad)
{
    const char *from = data, *from_grad = grad;
    for (const struct staged *s = staging->first; s; s = s->next) {
        memcpy(s->data, from, s->data_bytes);
        memcpy(s->grad, from_grad, s->grad_bytes);
        from += s->data_bytes;
        from_grad += s->grad_bytes;
    }
}

void staging_copy_out(const struct staging *staging, void *data)
{
    char *to = data;
    for (const struct staged *s = staging->first; s; s = s->next) {
        memcpy(to, s->data, s->data_bytes);
        to += s->data_bytes;
    }
}
