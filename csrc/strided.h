/* An array with gaps: its values brought together, a block at a time, and put back. */
#ifndef OPTPLUG_STRIDED_H
#define OPTPLUG_STRIDED_H

#include "bridge.h"

enum { MAX_DIMS = 8 };

struct strided {
    int dims; /* 0: no gaps */
    int64_t sizes[MAX_DIMS], strides[MAX_DIMS];
};

/* Which of a record's tensors have gaps. */
struct gapped {
    int count, length;   /* of lists with such a tensor, and of tensors in a list */
    int *lists, *places; /* which lists they are, and of each list which of these it is; -1: none */
    struct strided *all; /* those lists' tensors, list after list */
};

/* Copy where an operator's tensors have gaps; 0 if memory runs out, or a tensor has too many dimensions.
 * gapped_free takes one that is filled in in part. */
int gapped_make(struct gapped *gapped, const optplug_operator *given);
void gapped_free(struct gapped *gapped);

/* Return how a tensor's values lie; NULL if they have no gaps. */
const struct strided *gapped_find(const struct gapped *gapped, int list, int tensor);

/* Return how far from the first value the one at `first` lies, in values; and in *run, which is n before, how
 * many lie together from there on, at the most n. */
int64_t strided_place(const struct strided *strided, int64_t first, int64_t *run);

/* Copy n values of `size` bytes, 2, 4 or 8, from the one at `first` on. */
void strided_read(const struct strided *strided, const void *data, int size, int64_t first, int64_t n,
                  void *to);
void strided_write(const struct strided *strided, void *data, int size, int64_t first, int64_t n,
                   const void *from);

#endif
