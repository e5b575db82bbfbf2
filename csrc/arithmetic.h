/* The floating-point environment: traps, rounding, flush-to-zero and flags, which are the host's to choose.
 */
#ifndef OPTPLUG_ARITHMETIC_H
#define OPTPLUG_ARITHMETIC_H

#include <fenv.h>

struct arithmetic {
    int is_usual; /* the next two lines say it all */
    unsigned mxcsr;
    unsigned short x87_control, x87_status;
    fenv_t floating_point;
};

/* Save the host's floating-point environment, set C's own, and say in what the host's differs besides flags;
 * NULL where it does not. */
const char *arithmetic_enter(struct arithmetic *saved);

void arithmetic_leave(const struct arithmetic *saved);

#endif
