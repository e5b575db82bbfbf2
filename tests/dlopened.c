/* The API for a test that is not linked to liboptplug but opens it by name, and lets nobody else see its
 * symbols, as MATLAB, Julia and plug-in hosts do.  The name is in the environment. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

#include <optplug.h>

static void *find(const char *name)
{
    static void *library;
    if (!library)
        library = dlopen(getenv("OPTPLUG_TEST_LIBRARY"), RTLD_NOW | RTLD_LOCAL);
    void *found = library ? dlsym(library, name) : NULL;
    if (!found) {
        fprintf(stderr, "%s\n", dlerror());
        exit(2);
    }
    return found;
}

#define FORWARD(result, name, parameters, arguments)                                                         \
    result name parameters { return ((result(*) parameters)find(#name))arguments; }

FORWARD(int, opt_create, (const char *spec), (spec))
FORWARD(int, opt_bind, (int opt, const char *name, const char *dtype, int64_t n, void *data, void *grad),
        (opt, name, dtype, n, data, grad))
FORWARD(int, opt_step, (int opt), (opt))
FORWARD(int, opt_free, (int opt), (opt))
FORWARD(const char *, opt_error, (void), ())
FORWARD(const char *, opt_traceback, (void), ())
FORWARD(int, opt_bind_nd,
        (int opt, const char *name, const char *dtype, const char *device, int ndim, const int64_t *shape,
         void *data, const int64_t *strides, void *grad, const int64_t *grad_strides),
        (opt, name, dtype, device, ndim, shape, data, strides, grad, grad_strides))
FORWARD(int, opt_init, (const char *options), (options))
FORWARD(const char *, opt_describe, (int opt), (opt))
FORWARD(const char *, opt_version, (void), ())
