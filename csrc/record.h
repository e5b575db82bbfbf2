/* Records: what a step of an optimizer comes down to, run over its arrays in blocks that stay in the cache. */
#ifndef OPTPLUG_RECORD_H
#define OPTPLUG_RECORD_H

#include "bridge.h"

struct records;

/* Copy an operator's records and where its tensors are; NULL if memory runs out, or this machine lacks an
 * operation. */
struct records *records_make(const optplug_operator *given);
void records_free(struct records *records);

/* Choose a record for each parameter and compute its scalars from the operator's options; 0 where none holds.
 * Nothing else is changed. */
int records_prepare(struct records *records, const double *options);

/* Make the step that has been prepared. */
void records_run(const struct records *records);

/* Return the tensors of a list. */
const optplug_tensor *records_list(const struct records *records, int list);

/* Tell whether the values of a list's tensors, part by part, are such as `holds` tells of n of them. */
int records_all(const struct records *records, int list,
                int (*holds)(const void *values, int64_t n, const void *context), const void *context);

#endif
