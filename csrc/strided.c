#include "strided.h"

#include <stdlib.h>

static int make_strided(struct strided *strided, const optplug_tensor *given)
{
    if (given->dims > MAX_DIMS)
        return 0;
    strided->dims = given->dims;
    for (int i = 0; i < given->dims; i++) {
        strided->sizes[i] = given->sizes[i];
        strided->strides[i] = given->strides[i];
    }
    return 1;
}

int gapped_make(struct gapped *gapped, const optplug_operator *given)
{
    const int length = given->lengths[0];
    gapped->length = length;
    gapped->lists = calloc((size_t)given->lists, sizeof *gapped->lists);
    gapped->places = calloc((size_t)given->lists, sizeof *gapped->places);
    if (!gapped->lists || !gapped->places)
        return 0;
    for (int i = 0; i < given->lists; i++) {
        gapped->places[i] = -1;
        for (int j = 0; j < length && gapped->places[i] < 0; j++)
            if (given->tensors[i * length + j].dims > 0) {
                gapped->places[i] = gapped->count;
                gapped->lists[gapped->count++] = i;
            }
    }
    gapped->all = calloc((size_t)gapped->count * (size_t)length + 1, sizeof *gapped->all);
    struct strided *next = gapped->all;
    for (int k = 0; next && k < gapped->count; k++)
        for (int j = 0; j < length; j++)
            if (!make_strided(next++, &given->tensors[gapped->lists[k] * length + j]))
                return 0;
    return gapped->all != NULL;
}

void gapped_free(struct gapped *gapped)
{
    free(gapped->lists);
    free(gapped->places);
    free(gapped->all);
}

const struct strided *gapped_find(const struct gapped *gapped, int list, int tensor)
{
    if (gapped->places[list] < 0)
        return NULL;
    const struct strided *found = &gapped->all[gapped->places[list] * gapped->length + tensor];
    return found->dims > 0 ? found : NULL;
}

/* ---- copying ---- */

/* Copy some values that lie a stride apart to where they lie side by side, or back. */
#define COPY_RUN(NAME, TYPE)                                                                                 \
    static void NAME(TYPE *apart, int64_t stride, TYPE *together, int64_t n, int back)                       \
    {                                                                                                        \
        if (back)                                                                                            \
            for (int64_t i = 0; i < n; i++)                                                                  \
                apart[i * stride] = together[i];                                                             \
        else                                                                                                 \
            for (int64_t i = 0; i < n; i++)                                                                  \
                together[i] = apart[i * stride];                                                             \
    }

COPY_RUN(copy_run16, uint16_t)
COPY_RUN(copy_run32, uint32_t)
COPY_RUN(copy_run64, uint64_t)

/* Find the value at `first`: its index in each dimension, and how far it lies from the first of all. */
static int64_t find(const struct strided *strided, int64_t first, int64_t *index)
{
    int64_t at = 0;
    for (int i = 0; i < strided->dims; i++) {
        index[i] = first % strided->sizes[i];
        first /= strided->sizes[i];
        at += index[i] * strided->strides[i];
    }
    return at;
}

int64_t strided_place(const struct strided *strided, int64_t first, int64_t *run)
{
    int64_t index[MAX_DIMS], at = find(strided, first, index);
    int64_t together = strided->strides[0] == 1 ? strided->sizes[0] - index[0] : 1;
    if (*run > together)
        *run = together;
    return at;
}

static void copy(const struct strided *strided, char *data, int size, int64_t first, int64_t n,
                 char *together, int back)
{
    int64_t index[MAX_DIMS], at = find(strided, first, index);
    while (n > 0) {
        int64_t run = strided->sizes[0] - index[0];
        if (run > n)
            run = n;
        if (size == 8)
            copy_run64((uint64_t *)data + at, strided->strides[0], (uint64_t *)together, run, back);
        else if (size == 4)
            copy_run32((uint32_t *)data + at, strided->strides[0], (uint32_t *)together, run, back);
        else
            copy_run16((uint16_t *)data + at, strided->strides[0], (uint16_t *)together, run, back);
        together += run * size;
        n -= run;
        index[0] += run;
        at += run * strided->strides[0];
        for (int i = 0; i + 1 < strided->dims && index[i] == strided->sizes[i]; i++) {
            at += strided->strides[i + 1] - strided->sizes[i] * strided->strides[i];
            index[i] = 0;
            index[i + 1]++;
        }
    }
}

void strided_read(const struct strided *strided, const void *data, int size, int64_t first, int64_t n,
                  void *to)
{
    copy(strided, (char *)data, size, first, n, to, 0);
}

void strided_write(const struct strided *strided, void *data, int size, int64_t first, int64_t n,
                   const void *from)
{
    copy(strided, data, size, first, n, (char *)from, 1);
}
