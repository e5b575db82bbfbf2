#include "variable.h"

#include <stdlib.h>
#include <unistd.h>

#ifndef __APPLE__
#include <sys/auxv.h>
#endif

int variable_is_distrusted(void)
{
#ifdef __APPLE__
    return issetugid();
#else
    return getauxval(AT_SECURE) != 0;
#endif
}

const char *variable_get(const char *name) { return variable_is_distrusted() ? NULL : getenv(name); }
