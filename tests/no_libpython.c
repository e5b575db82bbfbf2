/* To be preloaded: makes this a machine on which no libpython can be opened. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#include <string.h>

void *dlopen(const char *name, int flags)
{
    if (name && strstr(name, "libpython"))
        return NULL;
    return ((void *(*)(const char *, int))dlsym(RTLD_NEXT, "dlopen"))(name, flags);
}
