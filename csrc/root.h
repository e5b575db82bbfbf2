/* A square root of float32 with the bits of Intel's, in the processor's own instructions. */
#ifndef OPTPLUG_ROOT_H
#define OPTPLUG_ROOT_H

#include <stdint.h>

/* Tell whether it has the bits of MKL's for all numbers.  The first call proves it, in 15 milliseconds. */
int root_find(void);

/* Take the square roots of n values, where root_find has told so. */
void root_f32(int64_t n, const float *a, float *to);

#endif
