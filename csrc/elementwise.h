/* Operations on each value of an array, with the roundings that torch's have. */
#ifndef OPTPLUG_ELEMENTWISE_H
#define OPTPLUG_ELEMENTWISE_H

#include "bridge.h"

/* Do one to n values in memory; `to` may be one of the others. */
typedef void (*elementwise)(int64_t n, void *to, const void *a, const void *b, const void *c, double v,
                            double u);

/* Return the operation of this number for values of 4 or 8 bytes, in the instructions that this processor has;
 * NULL if there is none. */
elementwise elementwise_find(int operation, int bytes);

/* Do one to n values of 4 or 8 bytes: to many in all threads, among which torch shares them as well. */
void elementwise_share(elementwise run, int bytes, int64_t n, void *to, const void *a, const void *b,
                       const void *c, double v, double u);

/* Return in how many bytes values of a format are worked with: half precision is float32 meanwhile. */
static inline int worked_in(int format) { return format == FORMAT_FLOAT64 ? 8 : 4; }

/* How values in half precision become float32, and float32 them; and how it is rounded to what they can be. */
struct half {
    elementwise widen, narrow, round;
};
struct half half_find(int format);

/* Round a number to a format. */
double elementwise_round(double value, int format);

/* Tell whether torch takes a scalar for values of 4 or 8 bytes: it raises an error where that would overflow. */
int elementwise_takes(double scalar, int bytes);

/* Do one: `optplug_host`'s. */
int elementwise_run(int operation, int format, int64_t n, void *to, const void *a, const void *b,
                    const void *c, double v, double u);

#endif
