/* What LBFGS costs per evaluation, beside the closure: on the quadratic of which it takes five steps without
 * reaching the minimum, with line_search_fn='strong_wolfe' and else the defaults.  The first step is not
 * timed; or it alone is, of four iterations, which have next to no history. */
#ifndef EVALUATIONS_H
#define EVALUATIONS_H

#include "server.h"

enum { TIMED_STEPS = 4, FIRST_ITERATIONS = 4 };

static int is_fresh; /* whether the first step is what is timed */
static float *point, *slope;
static long dimensions, evaluations;
static double inside; /* the closure, in seconds */

/* Half the sum of (1 + i^2) (w[i] - 1)^2, and its gradient.  Python's closure rounds in the same places. */
static double evaluate(void)
{
    double start = now(), loss = 0;
    for (long i = 0; i < dimensions; i++) {
        double weight = 1 + (double)i * (double)i, difference = (double)point[i] - 1;
        slope[i] = (float)(weight * difference);
        loss += 0.5 * weight * difference * difference;
    }
    evaluations++;
    inside += now() - start;
    return loss;
}

/* Return the seconds per evaluation; begin makes an optimizer of n values at point, and finish frees it. */
static inline double time_evaluations(long n, void (*begin)(void), void (*one_step)(void),
                                      void (*finish)(void))
{
    double spent = 0;
    long count = 0;
    dimensions = n;
    point = filled(n);
    slope = filled(n);
    while (spent < 0.1) {
        float *first = filled(n);
        memcpy(point, first, sizeof(float) * (size_t)n);
        free(first);
        begin();
        if (!is_fresh)
            one_step();
        evaluations = 0;
        inside = 0;
        double start = now();
        for (int i = 0; i < (is_fresh ? 1 : TIMED_STEPS); i++)
            one_step();
        spent += now() - start - inside;
        count += evaluations;
        finish();
    }
    return spent / (double)count;
}

#endif
