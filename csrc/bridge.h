/* The private contract between liboptplug and its Python.
 *
 * The C compiler reads this file, and so does cffi (python/optplug/_build.py, which drops the lines
 * that begin with '#').  Each member of optplug_python becomes a callback, py_<member>, that
 * python/optplug/_bridge.py defines.
 *
 * A callback returns 1 for success or a negative status, having called host->record.  Never 0: that is
 * what cffi returns by itself where a callback could not run. */
#ifndef OPTPLUG_BRIDGE_H
#define OPTPLUG_BRIDGE_H

#include <stdint.h>

/* What Python does for C. */
typedef struct optplug_python {
    int (*configure)(const char *options);
    int (*enter_thread)(void);
    int (*create)(int opt, const char *spec);
    int (*bind)(int opt, const char *name, const char *dtype, const char *device, int ndim,
                const int64_t *shape, void *data, const int64_t *strides, void *grad,
                const int64_t *grad_strides);
    int (*step)(int opt);
    int (*free)(int opt);
    int (*describe)(int opt);
    int (*describe_library)(const char *lines);
} optplug_python;

/* What C does for Python: keep this thread's error or text, and the number of threads for all. */
typedef struct optplug_host {
    void (*record)(const char *message, const char *traceback);
    void (*text)(const char *text);
    void (*threads)(int count);
} optplug_host;

/* Exchange the tables; NULL if `version`, the bridge's, is not this library's. */
const optplug_host *optplug_attach(const optplug_python *python, const char *version);

#endif
