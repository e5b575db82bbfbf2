/* Intel's MKL within torch's library: its square root, and how many threads it uses. */
#ifndef OPTPLUG_MKL_H
#define OPTPLUG_MKL_H

#include <stdint.h>

/* Find it; 0 if torch's library has none. */
int mkl_find(void);

/* Take the square roots of n values as torch does, on this thread alone. */
void mkl_sqrt_f32(int64_t n, const float *a, float *to);
void mkl_sqrt_f64(int64_t n, const double *a, double *to);

/* Return how many of its values take as long as a call by itself, which is measured once. */
int64_t mkl_cost(void);

/* Let it use this thread alone from now on: in a forked child, which has no workers. */
void mkl_stay_alone(void);

#endif
