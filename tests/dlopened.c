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
FORWARD(int, opt_error_status, (void), ())
FORWARD(const char *, opt_traceback, (void), ())
FORWARD(int, opt_bind_nd,
        (int opt, const char *name, const char *dtype, const char *device, int ndim, const int64_t *shape,
         void *data, const int64_t *strides, void *grad, const int64_t *grad_strides),
        (opt, name, dtype, device, ndim, shape, data, strides, grad, grad_strides))
FORWARD(int, opt_init, (const char *options), (options))
FORWARD(int, opt_log, (opt_log_function function, void *user), (function, user))
FORWARD(const char *, opt_describe, (int opt), (opt))
FORWARD(const char *, opt_version, (void), ())
FORWARD(int, opt_zero_grad, (int opt), (opt))
FORWARD(int, opt_clip_grad_norm,
        (int opt, double max_norm, double norm_type, int error_if_nonfinite, double *total_norm),
        (opt, max_norm, norm_type, error_if_nonfinite, total_norm))
FORWARD(int, opt_clip_grad_value, (int opt, double clip_value), (opt, clip_value))
FORWARD(int, opt_get, (int opt, int group, const char *name, double *value), (opt, group, name, value))
FORWARD(int, opt_set, (int opt, int group, const char *options), (opt, group, options))
FORWARD(int, opt_set_value, (int opt, int group, const char *name, double value), (opt, group, name, value))
FORWARD(int, opt_schedule, (int opt, const char *spec), (opt, spec))
FORWARD(int, opt_schedule_step, (int opt), (opt))
FORWARD(int, opt_schedule_step_metric, (int opt, double value), (opt, value))
FORWARD(const char *, opt_warning, (void), ())
FORWARD(int, opt_bind_sparse,
        (int opt, const char *name, const char *dtype, int64_t rows, int64_t columns, void *data,
         int64_t capacity, const int64_t *count, const int64_t *indices, void *grad_rows),
        (opt, name, dtype, rows, columns, data, capacity, count, indices, grad_rows))
FORWARD(int, opt_group, (int opt, const char *options), (opt, options))
FORWARD(int, opt_step_closure, (int opt, opt_callback closure, void *user, double *loss),
        (opt, closure, user, loss))
FORWARD(int, opt_iterate, (int opt, double loss), (opt, loss))
FORWARD(int, opt_check_gradient, (int opt, opt_callback closure, void *user, double *error),
        (opt, closure, user, error))
FORWARD(int, opt_check_gradient_iterate, (int opt, double loss, double *error), (opt, loss, error))
FORWARD(int, opt_distribute,
        (int opt, const char *placement, opt_collective collective, void *user, int rank, int size),
        (opt, placement, collective, user, rank, size))
FORWARD(int, opt_bind_block,
        (int opt, const char *name, int ndim, const int64_t *global_shape, const int64_t *offset,
         const int64_t *shape),
        (opt, name, ndim, global_shape, offset, shape))
FORWARD(int, opt_schedule_callback, (int opt, const char *spec, opt_callback function, void *user),
        (opt, spec, function, user))
FORWARD(int, opt_stream, (int opt, void *stream), (opt, stream))
FORWARD(int, opt_grad_scale, (int opt, const void *scale, const void *found_inf), (opt, scale, found_inf))
FORWARD(int, opt_average, (int opt, const char *spec), (opt, spec))
FORWARD(int, opt_average_get, (int opt, const char *name, void *data), (opt, name, data))
FORWARD(int, opt_average_swap, (int opt), (opt))
FORWARD(int, opt_call, (int opt, const char *method), (opt, method))
FORWARD(const char *, opt_list, (const char *kind), (kind))
FORWARD(int, opt_checkpoint, (int opt, const char *options), (opt, options))
FORWARD(int, opt_attribute, (int opt, const char *name, const char *text), (opt, name, text))
FORWARD(const char *, opt_attribute_get, (int opt, const char *name), (opt, name))
FORWARD(int, opt_save, (int opt, const char *path), (opt, path))
FORWARD(int, opt_load, (int opt, const char *path), (opt, path))
FORWARD(int64_t, opt_save_memory, (int opt, void *buffer, int64_t size), (opt, buffer, size))
FORWARD(int, opt_load_memory, (int opt, const void *buffer, int64_t size), (opt, buffer, size))
FORWARD(int, opt_step_f64, (int opt, double *data, const double *grad), (opt, data, grad))
FORWARD(int, opt_step_f32, (int opt, float *data, const float *grad), (opt, data, grad))
