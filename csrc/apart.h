/* Whether torch must find its own libraries before the host's, and whether it can. */
#ifndef OPTPLUG_APART_H
#define OPTPLUG_APART_H

#include <stddef.h>

/* Decide, before torch is loaded: 1 if it must be, by RTLD_DEEPBIND, 0 if not, or a negative status where
 * neither would do. */
int apart_decide(void);

/* Return the file of the LibTorch that the host has, and torch gets; "" if it has none. */
const char *apart_libtorch(void);

/* Say whose allocator and BLAS torch gets, a "name: value" a line. */
void apart_describe(char *text, size_t size);

#endif
