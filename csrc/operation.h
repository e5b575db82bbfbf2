/* One operator of torch's, or records, with all that it is called with. */
#ifndef OPTPLUG_OPERATION_H
#define OPTPLUG_OPERATION_H

#include "bridge.h"
#include "list.h"
#include "record.h"

enum { MAX_SCALARS = 8, MAX_SINGLES = 2, MAX_OPTIONS = 32 };

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

struct operation {
    optplug_operator form; /* without its pointers */
    char name[64];         /* "aten::_fused_adam_" */
    char overload[16];
    struct list lists[MAX_LISTS];
    double scalars[MAX_OPTIONS];     /* of an operator MAX_SCALARS at the most */
    struct list singles;             /* those that are there: NULL in the place of one that is not */
    boxed optionals[MAX_SINGLES][2]; /* the same, each as a std::optional */
    entry entry;                     /* NULL: boxed only */
    struct records *records;         /* NULL: an operator of torch's */
    boxed words[MAX_WORDS];
};

/* Fill in an operation, through torch's stable ABI alone if `stable`; 0 if that fails.  operation_free takes
 * one that is filled in in part. */
int operation_make(struct operation *operation, const optplug_operator *given, const double *scalars,
                   int stable);
void operation_free(struct operation *operation);

/* Return how many doubles and bools it takes; take them over anew. */
int operation_scalar_count(const struct operation *operation);
void operation_set_scalars(struct operation *operation, const double *scalars);

/* Tell whether it can run without Python: not where a gradient is to be finite and is not, or no record holds.
 */
int operation_prepare(struct operation *operation);

/* Return how much of the heap it takes at the most while it runs, by its own entry if it is `proven`. */
size_t operation_room(const struct operation *operation, int proven);

/* Run it, by its own entry if there is one and it is `proven`; 0 if torch fails. */
int operation_run(const struct operation *operation, int proven);

#endif
