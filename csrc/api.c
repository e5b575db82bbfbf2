/* The opt_ functions: check, run the plan or cross the bridge, translate. */
#include "optplug.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "callback.h"
#include "error.h"
#include "handle.h"
#include "host.h"
#include "lent.h"
#include "log.h"
#include "plan.h"

#define API __attribute__((visibility("default")))

/* ---- what the calls have in common ---- */

struct call {
    struct host_state saved;
    struct slot *slot;
};

/* Turn what a callback returned into a status. */
static int translate(int result)
{
    if (result == 0)
        return fail(OPT_ERUNTIME, "optplug's Python could not run the call, and left no message");
    return result > 0 ? OPT_OK : result;
}

/* Begin a call on an optimizer: shield the host, lock the handle, see that Python is there. */
static int begin_call(struct call *call, int opt, enum handle_use use)
{
    host_enter(&call->saved);
    int status = handle_lock(opt, use, &call->slot);
    if (status == OPT_OK) {
        status = call->saved.outer ? callback_room() : OPT_OK;
        if (status == OPT_OK)
            status = host_running();
        if (status < 0)
            handle_unlock(call->slot);
    }
    if (status < 0)
        host_leave(&call->saved);
    return status;
}

static int begin(struct call *call, int opt) { return begin_call(call, opt, HANDLE_CHANGE); }

/* Let go of the plan in a call that has begun and may change what that has fixed: Python gives the plan back
 * if it still holds.  That it goes first, and here, keeps an interrupt in Python from leaving one that steps
 * arrays of before. */
static int drop_plan(struct call *call, int status)
{
    if (status == OPT_OK)
        handle_set_plan(call->slot, NULL);
    return status;
}

static int begin_change(struct call *call, int opt) { return drop_plan(call, begin(call, opt)); }

/* Also in a function of the host's that this very optimizer has called. */
static int begin_anywhere(struct call *call, int opt) { return begin_call(call, opt, HANDLE_ASK); }

/* Before a crossing in which Python may call a function of the host's. */
static void expect(struct call *call) { callback_expect(&call->saved, call->slot); }

static int end(struct call *call, int result)
{
    int status = translate(result);
    handle_unlock(call->slot);
    host_leave(&call->saved);
    return status;
}

/* End a call that has begun if it is one on the arrays, and some parameter has none now. */
static int need_arrays(struct call *call, int status)
{
    struct lent *lent = status == OPT_OK ? *handle_lent(call->slot) : NULL;
    return !lent ? status
                 : end(call, fail(OPT_ESTATE,
                                  "parameter '%.200s' has arrays only in opt_step_f64 and opt_step_f32: bind "
                                  "it to arrays for this",
                                  lent_name(lent)));
}

/* Return the text that a call has made, NULL if it has failed. */
static const char *take_text(int status)
{
    const char *text = status < 0 ? NULL : text_get();
    if (status >= 0 && !text)
        fail(OPT_ENOMEM, "out of memory");
    return text;
}

/* ---- one optimizer, from creation to the end ---- */

API int opt_create(const char *spec)
{
    if (!spec)
        return fail(OPT_EINVAL, "spec must not be NULL");
    int status = host_start(NULL);
    if (status < 0)
        return status;
    struct call call;
    host_enter(&call.saved);
    int opt = handle_new(&call.slot);
    if (opt > 0) {
        status = translate(host_python()->create(opt, spec));
        if (status == OPT_OK) {
            handle_unlock(call.slot);
        } else {
            handle_retire(call.slot);
            opt = status;
        }
    }
    host_leave(&call.saved);
    return opt;
}

API int opt_bind(int opt, const char *name, const char *dtype, int64_t n, void *data, void *grad)
{
    if (n < 0)
        return fail(OPT_EINVAL, "n must not be negative, got %lld", (long long)n);
    return opt_bind_nd(opt, name, dtype, "cpu", 1, &n, data, NULL, grad, NULL);
}

/* Make a step in a call that has begun. */
static int step(struct call *call, int opt)
{
    struct plan *plan = handle_plan(call->slot);
    int result = plan ? plan_run(plan) : 0;
    if (result > 0) {
        handle_count_step(call->slot);
        return result;
    }
    handle_set_plan(call->slot, NULL);
    return result ? result : host_python()->step(opt);
}

API int opt_step(int opt)
{
    struct call call;
    int status = need_arrays(&call, begin(&call, opt));
    return status < 0 ? status : end(&call, step(&call, opt));
}

API int opt_free(int opt)
{
    struct call call;
    int status = begin_call(&call, opt, HANDLE_FREE);
    if (status < 0)
        return status;
    status = translate(host_python()->free(opt));
    handle_retire(call.slot);
    host_leave(&call.saved);
    return status;
}

/* ---- gradients ---- */

API int opt_zero_grad(int opt)
{
    struct call call;
    int status = need_arrays(&call, begin_anywhere(&call, opt));
    return status < 0 ? status : end(&call, host_python()->zero_grad(opt));
}

API int opt_clip_grad_norm(int opt, double max_norm, double norm_type, int error_if_nonfinite,
                           double *total_norm)
{
    struct call call;
    int status = need_arrays(&call, begin_anywhere(&call, opt));
    double norm;
    if (status == OPT_OK)
        status = end(&call, host_python()->clip_grad_norm(opt, max_norm, norm_type, error_if_nonfinite,
                                                          total_norm ? &norm : NULL));
    if (status == OPT_OK && total_norm)
        *total_norm = norm;
    return status;
}

API int opt_clip_grad_value(int opt, double clip_value)
{
    struct call call;
    int status = need_arrays(&call, begin_anywhere(&call, opt));
    return status < 0 ? status : end(&call, host_python()->clip_grad_value(opt, clip_value));
}

/* ---- hyperparameters and schedules ---- */

API int opt_get(int opt, int group, const char *name, double *value)
{
    if (!name)
        return fail(OPT_EINVAL, "name must not be NULL");
    if (!value)
        return fail(OPT_EINVAL, "value must not be NULL");
    struct call call;
    int status = begin_anywhere(&call, opt);
    return status < 0 ? status : end(&call, host_python()->get(opt, group, name, value));
}

API int opt_set(int opt, int group, const char *options)
{
    if (!options)
        return fail(OPT_EINVAL, "options must not be NULL");
    struct call call;
    int status = begin_change(&call, opt);
    return status < 0 ? status : end(&call, host_python()->set(opt, group, options));
}

static int schedule(int opt, const char *spec, opt_callback function, void *user)
{
    struct call call;
    int status = begin_change(&call, opt);
    if (status < 0)
        return status;
    expect(&call);
    return end(&call, host_python()->schedule(opt, spec, function, user));
}

API int opt_schedule(int opt, const char *spec) { return schedule(opt, spec, NULL, NULL); }

static int schedule_step(int opt, const double *metric)
{
    struct call call;
    int status = begin(&call, opt);
    if (status < 0)
        return status;
    expect(&call);
    int result = host_python()->schedule_step(opt, metric); /* which may refresh the plan */
    if (result <= 0)
        handle_set_plan(call.slot, NULL);
    return end(&call, result);
}

API int opt_schedule_step(int opt) { return schedule_step(opt, NULL); }

API int opt_schedule_step_metric(int opt, double value) { return schedule_step(opt, &value); }

/* ---- when something goes wrong ---- */

API const char *opt_error(void) { return error_message(); }

API int opt_error_status(void) { return error_status(); }

API const char *opt_warning(void) { return warning_take(); }

API const char *opt_traceback(void) { return error_traceback(); }

/* ---- arrays of any shape and layout ---- */

static int has_elements(int ndim, const int64_t *shape)
{
    for (int i = 0; i < ndim; i++)
        if (shape[i] == 0)
            return 0;
    return 1;
}

API int opt_bind_nd(int opt, const char *name, const char *dtype, const char *device, int ndim,
                    const int64_t *shape, void *data, const int64_t *strides, void *grad,
                    const int64_t *grad_strides)
{
    enum { MAX_DIMENSIONS = 64 }; /* torch's */
    if (!name)
        return fail(OPT_EINVAL, "name must not be NULL");
    if (!dtype)
        return fail(OPT_EINVAL, "dtype must not be NULL");
    if (!device)
        return fail(OPT_EINVAL, "device must not be NULL");
    if (ndim < 0 || ndim > MAX_DIMENSIONS)
        return fail(OPT_EINVAL, "ndim must be 0 to %d, got %d", MAX_DIMENSIONS, ndim);
    if (!shape && ndim > 0)
        return fail(OPT_EINVAL, "shape must not be NULL where ndim is %d", ndim);
    int come_later = !data && !grad && has_elements(ndim, shape);
    if (come_later && strcmp(device, "cpu") != 0)
        return fail(OPT_EINVAL, "device must be 'cpu' where data and grad are NULL, got '%.200s'", device);
    if (!data && grad && has_elements(ndim, shape))
        return fail(OPT_EINVAL, "data must not be NULL where grad is not");
    if (!grad && data && has_elements(ndim, shape))
        return fail(OPT_EINVAL, "grad must not be NULL where data is not");
    struct lent *lent = NULL;
    if (come_later) {
        int status = lent_make(name, dtype, ndim, shape, strides, grad_strides, &lent);
        if (status < 0)
            return status;
        data = lent_data(lent);
        grad = lent_grad(lent);
    }

    struct call call;
    int status = begin_change(&call, opt);
    if (status == OPT_OK) {
        status = host_python()->bind(opt, name, dtype, device, ndim, shape, data, strides, grad, grad_strides,
                                     lent != NULL);
        if (status > 0 && lent)
            lent_put(handle_lent(call.slot), lent);
        else if (status > 0)
            lent_remove(handle_lent(call.slot), name);
        status = end(&call, status);
    }
    if (status < 0)
        lent_free(lent);
    return status;
}

static int step_lent(int opt, const char *dtype, void *data, const void *grad)
{
    if (!data)
        return fail(OPT_EINVAL, "data must not be NULL");
    if (!grad)
        return fail(OPT_EINVAL, "grad must not be NULL");
    struct call call;
    int status = begin(&call, opt);
    if (status < 0)
        return status;
    struct lent *lent = *handle_lent(call.slot);
    status = lent_check(lent, dtype);
    if (status < 0)
        return end(&call, status);
    lent_copy_in(lent, data, grad);
    int result = step(&call, opt);
    if (result > 0)
        lent_copy_out(lent, data);
    return end(&call, result);
}

API int opt_step_f64(int opt, double *data, const double *grad)
{
    return step_lent(opt, "float64", data, grad);
}

API int opt_step_f32(int opt, float *data, const float *grad)
{
    return step_lent(opt, "float32", data, grad);
}

API int opt_bind_sparse(int opt, const char *name, const char *dtype, int64_t rows, int64_t columns,
                        void *data, int64_t capacity, const int64_t *count, const int64_t *indices,
                        void *grad_rows)
{
    if (!name)
        return fail(OPT_EINVAL, "name must not be NULL");
    if (!dtype)
        return fail(OPT_EINVAL, "dtype must not be NULL");
    if (rows <= 0)
        return fail(OPT_EINVAL, "rows must be positive, got %lld", (long long)rows);
    if (columns <= 0)
        return fail(OPT_EINVAL, "columns must be positive, got %lld", (long long)columns);
    if (!data)
        return fail(OPT_EINVAL, "data must not be NULL");
    if (capacity <= 0)
        return fail(OPT_EINVAL, "capacity must be positive, got %lld", (long long)capacity);
    if (!count)
        return fail(OPT_EINVAL, "count must not be NULL");
    if (!indices)
        return fail(OPT_EINVAL, "indices must not be NULL");
    if (!grad_rows)
        return fail(OPT_EINVAL, "grad_rows must not be NULL");
    struct call call;
    int status = begin_change(&call, opt);
    if (status < 0)
        return status;
    int result = host_python()->bind_sparse(opt, name, dtype, rows, columns, data, capacity, count, indices,
                                            grad_rows);
    if (result > 0)
        lent_remove(handle_lent(call.slot), name);
    return end(&call, result);
}

API int opt_group(int opt, const char *options)
{
    if (!options)
        return fail(OPT_EINVAL, "options must not be NULL");
    struct call call;
    int status = begin_change(&call, opt);
    return status < 0 ? status : end(&call, host_python()->group(opt, options));
}

/* ---- functions of the host's ---- */

API int opt_step_closure(int opt, opt_callback closure, void *user, double *loss)
{
    if (!closure)
        return fail(OPT_EINVAL, "closure must not be NULL");
    struct call call;
    int status = drop_plan(&call, need_arrays(&call, begin(&call, opt)));
    double first;
    if (status == OPT_OK) {
        expect(&call);
        status = end(&call, host_python()->step_closure(opt, closure, user, &first));
    }
    if (status == OPT_OK && loss)
        *loss = first;
    return status;
}

API int opt_iterate(int opt, double loss)
{
    struct call call;
    int status = drop_plan(&call, need_arrays(&call, begin(&call, opt)));
    int wanted = 0;
    if (status == OPT_OK)
        status = end(&call, host_python()->iterate(opt, loss, &wanted));
    return status < 0 ? status : wanted ? OPT_EVALUATE : OPT_DONE;
}

API int opt_schedule_callback(int opt, const char *spec, opt_callback function, void *user)
{
    if (!spec)
        return fail(OPT_EINVAL, "spec must not be NULL");
    if (!function)
        return fail(OPT_EINVAL, "function must not be NULL");
    return schedule(opt, spec, function, user);
}

/* ---- GPUs ---- */

API int opt_stream(int opt, void *stream)
{
    struct call call;
    int status = begin_change(&call, opt);
    return status < 0 ? status : end(&call, host_python()->stream(opt, stream));
}

API int opt_grad_scale(int opt, const void *scale, const void *found_inf)
{
    struct call call;
    int status = begin_change(&call, opt);
    return status < 0 ? status : end(&call, host_python()->grad_scale(opt, scale, found_inf));
}

/* ---- averages ---- */

API int opt_average(int opt, const char *spec)
{
    if (!spec)
        return fail(OPT_EINVAL, "spec must not be NULL");
    struct call call;
    int status = begin_change(&call, opt);
    return status < 0 ? status : end(&call, host_python()->average(opt, spec));
}

API int opt_average_get(int opt, const char *name, void *data)
{
    if (!name)
        return fail(OPT_EINVAL, "name must not be NULL");
    if (!data)
        return fail(OPT_EINVAL, "data must not be NULL");
    struct call call;
    int status = begin_anywhere(&call, opt);
    return status < 0 ? status : end(&call, host_python()->average_get(opt, name, data));
}

API int opt_average_swap(int opt)
{
    struct call call;
    int status = drop_plan(&call, need_arrays(&call, begin(&call, opt)));
    return status < 0 ? status : end(&call, host_python()->average_swap(opt));
}

/* ---- checkpoints ---- */

API int opt_checkpoint(int opt, const char *options)
{
    if (!options)
        return fail(OPT_EINVAL, "options must not be NULL");
    struct call call;
    int status = begin(&call, opt);
    return status < 0 ? status : end(&call, host_python()->checkpoint(opt, options));
}

API int opt_attribute(int opt, const char *name, const char *text)
{
    if (!name)
        return fail(OPT_EINVAL, "name must not be NULL");
    struct call call;
    int status = begin(&call, opt);
    return status < 0 ? status : end(&call, host_python()->attribute(opt, name, text));
}

API const char *opt_attribute_get(int opt, const char *name)
{
    if (!name)
        return fail(OPT_EINVAL, "name must not be NULL"), NULL;
    struct call call;
    int status = begin_anywhere(&call, opt);
    return take_text(status < 0 ? status : end(&call, host_python()->attribute_get(opt, name)));
}

API int opt_save(int opt, const char *path)
{
    if (!path)
        return fail(OPT_EINVAL, "path must not be NULL");
    struct call call;
    int status = begin(&call, opt);
    return status < 0 ? status : end(&call, host_python()->save(opt, path));
}

API int opt_load(int opt, const char *path)
{
    if (!path)
        return fail(OPT_EINVAL, "path must not be NULL");
    struct call call;
    int status = begin_change(&call, opt);
    if (status < 0)
        return status;
    expect(&call);
    return end(&call, host_python()->load(opt, path));
}

API int64_t opt_save_memory(int opt, void *buffer, int64_t size)
{
    if (buffer && size <= 0)
        return fail(OPT_EINVAL, "size must be positive, got %lld", (long long)size);
    struct call call;
    int status = begin(&call, opt);
    int64_t written;
    if (status == OPT_OK)
        status = end(&call, host_python()->save_memory(opt, buffer, size, &written));
    return status < 0 ? status : written;
}

API int opt_load_memory(int opt, const void *buffer, int64_t size)
{
    if (!buffer)
        return fail(OPT_EINVAL, "buffer must not be NULL");
    if (size <= 0)
        return fail(OPT_EINVAL, "size must be positive, got %lld", (long long)size);
    struct call call;
    int status = begin_change(&call, opt);
    if (status < 0)
        return status;
    expect(&call);
    return end(&call, host_python()->load_memory(opt, buffer, size));
}

/* ---- the library itself ---- */

/* Find `python='path'` among "name=value, name=value": copy the path, and blank the item out of the
 * options, since Python, which reads the rest, is not there yet. */
static int take_python(char *options, char *path, size_t size)
{
    path[0] = '\0';
    for (char *item = options; *item;) {
        int before_value = 0;
        sscanf(item, " python = %n", &before_value);
        char *value = item + before_value;
        size_t length = strcspn(value, ",'\"");
        char quote = value[length] == ',' ? '\0' : value[length];
        char *end = quote ? strchr(value + length + 1, quote) : value + length;
        if (!end)
            return fail(OPT_EINVAL, "options '%.400s': a quote is not closed", options);
        if (before_value > 0) {
            if (!quote || length > 0 || (size_t)(end - value) > size)
                return fail(OPT_EINVAL,
                            "options '%.400s': python must be a quoted path, as in "
                            "python='/opt/env/bin/python3'",
                            options);
            memcpy(path, value + 1, (size_t)(end - value - 1));
            path[end - value - 1] = '\0';
            end++;
            end += strspn(end, " ,");
            memset(item, ' ', (size_t)(end - item));
        } else if (*end)
            end++;
        item = end;
    }
    return OPT_OK;
}

API int opt_init(const char *options)
{
    enum { MOST = 10000 };
    if (options && strnlen(options, MOST + 1) > MOST)
        return fail(OPT_EINVAL, "options is longer than %d characters: '%.60s...'", MOST, options);
    char *rest = strdup(options ? options : "");
    if (!rest)
        return fail(OPT_ENOMEM, "out of memory");
    char python[PATH_MAX];
    int status = take_python(rest, python, sizeof python);
    if (status == OPT_OK)
        status = host_start(python);
    if (status == OPT_OK) {
        struct host_state saved;
        host_enter(&saved);
        status = translate(host_python()->configure(rest));
        host_leave(&saved);
    }
    free(rest);
    return status;
}

API int opt_log(opt_log_function function, void *user)
{
    struct host_state saved;
    host_enter(&saved); /* which lets go of a Python host's lock, if the function before waits for that */
    int status = log_set_function(function, user);
    host_leave(&saved);
    return status;
}

static const char *describe_library(void)
{
    struct host_state saved;
    host_enter(&saved);
    char lines[3 * PATH_MAX];
    int status = callback_room();
    if (status == OPT_OK && host_describe(lines, sizeof lines))
        status = translate(host_python()->describe_library(lines));
    else if (status == OPT_OK)
        text_set(lines);
    host_leave(&saved);
    return take_text(status);
}

API const char *opt_describe(int opt)
{
    if (opt == 0)
        return describe_library();
    struct call call;
    int status = begin_anywhere(&call, opt);
    return take_text(status < 0 ? status : end(&call, host_python()->describe(opt)));
}

API const char *opt_list(const char *kind)
{
    if (!kind)
        return fail(OPT_EINVAL, "kind must not be NULL"), NULL;
    if (host_start(NULL) < 0)
        return NULL;
    struct host_state saved;
    host_enter(&saved);
    int status = translate(host_python()->list(kind));
    host_leave(&saved);
    return take_text(status);
}

API const char *opt_version(void) { return OPTPLUG_VERSION; }

/* ---- the same by longer names ---- */

/* Of the type that the header declares, or the compiler says so.  macOS has no such aliases: the linker makes
 * them there (library.cmake). */
#ifdef __APPLE__
#define ALIAS(name) extern __typeof__(opt_##name) optplug_##name;
#else
#define ALIAS(name) extern API __typeof__(opt_##name) optplug_##name __attribute__((alias("opt_" #name)));
#endif

ALIAS(create)
ALIAS(bind)
ALIAS(step)
ALIAS(free)
ALIAS(zero_grad)
ALIAS(clip_grad_norm)
ALIAS(clip_grad_value)
ALIAS(get)
ALIAS(set)
ALIAS(schedule)
ALIAS(schedule_step)
ALIAS(schedule_step_metric)
ALIAS(error)
ALIAS(error_status)
ALIAS(warning)
ALIAS(traceback)
ALIAS(bind_nd)
ALIAS(step_f64)
ALIAS(step_f32)
ALIAS(bind_sparse)
ALIAS(group)
ALIAS(step_closure)
ALIAS(iterate)
ALIAS(schedule_callback)
ALIAS(stream)
ALIAS(grad_scale)
ALIAS(average)
ALIAS(average_get)
ALIAS(average_swap)
ALIAS(checkpoint)
ALIAS(attribute)
ALIAS(attribute_get)
ALIAS(save)
ALIAS(load)
ALIAS(save_memory)
ALIAS(load_memory)
ALIAS(init)
ALIAS(log)
ALIAS(describe)
ALIAS(list)
ALIAS(version)
