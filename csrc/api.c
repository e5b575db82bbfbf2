/* The public functions on an optimizer: check, call, translate. */
#include "optplug.h"

#include <string.h>

#include "api.h"
#include "call.h"
#include "callback.h"
#include "error.h"
#include "gradients.h"
#include "handle.h"
#include "log.h"
#include "plan.h"
#include "staging.h"

/* ---- one optimizer, from creation to the end ---- */

API(create)
int opt_create(const char *spec)
{
    struct call call;
    int opt = spec ? call_begin_new(&call) : fail(OPT_EINVAL, "spec must not be NULL");
    int status = opt < 0 ? opt : call_end_new(&call, runtime.python->create(opt, spec));
    if (status < 0)
        error_keep();
    return status < 0 ? status : opt;
}

API(bind)
int opt_bind(int opt, const char *name, const char *dtype, int64_t n, void *data, void *grad)
{
    if (n < 0)
        return fail(OPT_EINVAL, "n must not be negative, got %lld", (long long)n);
    return opt_bind_nd(opt, name, dtype, "cpu", 1, &n, data, NULL, grad, NULL);
}

API(step)
int opt_step(int opt)
{
    struct call call;
    int status = call_begin(&call, opt, CALL_STEP);
    return status < 0 ? status : call_end(&call, call_step(&call));
}

API(free)
int opt_free(int opt)
{
    struct call call;
    int status = call_begin(&call, opt, CALL_FREE);
    return status < 0 ? status : call_end_last(&call, runtime.python->free(opt));
}

/* ---- gradients ---- */

/* Return the gradients of a call's optimizer where they can be changed without Python. */
static const struct gradients *gradients_of(const struct call *call)
{
    return plan_gradients(handle_plan(call->slot));
}

API(zero_grad)
int opt_zero_grad(int opt)
{
    struct call call;
    int status = call_begin(&call, opt, CALL_ZERO_GRAD);
    if (status < 0)
        return status;
    if (gradients_zero(gradients_of(&call))) {
        struct ranks *ranks = plan_ranks(handle_plan(call.slot));
        if (ranks)
            ranks_zero(ranks);
        return call_end(&call, call_keeps_plan(&call));
    }
    int result = call_tell_python(&call);
    return call_end(&call, result > 0 ? runtime.python->zero_grad(opt) : result);
}

static int clip_grad_norm(struct call *call, double max_norm, int error_if_nonfinite, double *total_norm)
{
    struct ranks *ranks = plan_ranks(handle_plan(call->slot));
    if (!ranks)
        return gradients_clip_norm(gradients_of(call), max_norm, total_norm);
    return gradients_clip_norm_of_ranks(gradients_of(call), ranks, callback_collective, max_norm,
                                        error_if_nonfinite, total_norm);
}

API(clip_grad_norm)
int opt_clip_grad_norm(int opt, double max_norm, double norm_type, int error_if_nonfinite, double *total_norm)
{
    struct call call;
    int status = call_begin(&call, opt, CALL_CLIP_GRAD_NORM);
    double norm;
    if (status == OPT_OK) {
        int is_error = error_if_nonfinite != 0;
        int result = norm_type == 2 ? clip_grad_norm(&call, max_norm, is_error, &norm) : 0;
        if (result == 1)
            call_keeps_plan(&call);
        else if (result >= 0) {
            int told = result;
            result = call_tell_python(&call);
            if (result > 0)
                result = runtime.python->clip_grad_norm(opt, max_norm, norm_type, is_error | told,
                                                        total_norm ? &norm : NULL);
        }
        status = call_end(&call, result);
    }
    if (status == OPT_OK && total_norm)
        *total_norm = norm;
    return status;
}

API(clip_grad_value)
int opt_clip_grad_value(int opt, double clip_value)
{
    struct call call;
    int status = call_begin(&call, opt, CALL_CLIP_GRAD_VALUE);
    if (status < 0)
        return status;
    struct ranks *ranks = plan_ranks(handle_plan(call.slot));
    if (!(ranks && ranks_reduces(ranks)) && gradients_clip_value(gradients_of(&call), clip_value))
        return call_end(&call, call_keeps_plan(&call));
    int result = call_tell_python(&call);
    return call_end(&call, result > 0 ? runtime.python->clip_grad_value(opt, clip_value) : result);
}

/* ---- hyperparameters and schedules ---- */

API(get)
int opt_get(int opt, int group, const char *name, double *value)
{
    if (!name)
        return fail(OPT_EINVAL, "name must not be NULL");
    if (!value)
        return fail(OPT_EINVAL, "value must not be NULL");
    struct call call;
    int status = call_begin(&call, opt, CALL_GET);
    return status < 0 ? status : call_end(&call, runtime.python->get(opt, group, name, value));
}

API(set)
int opt_set(int opt, int group, const char *options)
{
    if (!options)
        return fail(OPT_EINVAL, "options must not be NULL");
    struct call call;
    int status = call_begin(&call, opt, CALL_SET);
    return status < 0 ? status : call_end(&call, runtime.python->set(opt, group, options));
}

API(set_value)
int opt_set_value(int opt, int group, const char *name, double value)
{
    if (!name)
        return fail(OPT_EINVAL, "name must not be NULL");
    struct call call;
    int status = call_begin(&call, opt, CALL_SET_VALUE);
    if (status < 0)
        return status;
    int result = call_set_value(&call, group, name, value);
    if (result > 0 && log_level >= LOG_DEBUG)
        log_line(LOG_DEBUG, "opt=%d: set %s=%g", opt, name, value);
    return call_end(&call, result);
}

static int schedule(int opt, const char *spec, opt_callback function, void *user)
{
    struct call call;
    int status = call_begin(&call, opt, CALL_SCHEDULE);
    return status < 0 ? status : call_end(&call, runtime.python->schedule(opt, spec, function, user));
}

API(schedule)
int opt_schedule(int opt, const char *spec) { return schedule(opt, spec, NULL, NULL); }

static int schedule_step(int opt, const double *metric)
{
    struct call call;
    int status = call_begin(&call, opt, CALL_SCHEDULE_STEP);
    if (status < 0)
        return status;
    if (!metric && plan_step_schedule(handle_plan(call.slot)))
        return call_end(&call, call_keeps_plan(&call));
    int result = call_tell_python(&call);
    return call_end(&call, result > 0 ? runtime.python->schedule_step(opt, metric) : result);
}

API(schedule_step)
int opt_schedule_step(int opt) { return schedule_step(opt, NULL); }

API(schedule_step_metric)
int opt_schedule_step_metric(int opt, double value) { return schedule_step(opt, &value); }

/* ---- arrays of any shape and layout ---- */

static int has_elements(int ndim, const int64_t *shape)
{
    for (int i = 0; i < ndim; i++)
        if (shape[i] == 0)
            return 0;
    return 1;
}

API(bind_nd)
int opt_bind_nd(int opt, const char *name, const char *dtype, const char *device, int ndim,
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
    struct staged *staged = NULL;
    if (come_later) {
        int status = staging_make(name, dtype, ndim, shape, strides, grad_strides, &staged);
        if (status < 0)
            return status;
        data = staging_data(staged);
        grad = staging_grad(staged);
    }

    struct call call;
    int status = call_begin(&call, opt, CALL_BIND);
    if (status == OPT_OK) {
        int result = runtime.python->bind(opt, name, dtype, device, ndim, shape, data, strides, grad,
                                          grad_strides, staged != NULL);
        if (result > 0 && staged)
            staging_put(handle_staging(call.slot), staged);
        else if (result > 0)
            staging_remove(handle_staging(call.slot), name);
        status = call_end(&call, result);
    }
    if (status < 0)
        staging_free(staged);
    return status;
}

static int step_staged(int opt, const char *dtype, void *data, const void *grad)
{
    if (!data)
        return fail(OPT_EINVAL, "data must not be NULL");
    if (!grad)
        return fail(OPT_EINVAL, "grad must not be NULL");
    struct call call;
    int status = call_begin(&call, opt, CALL_STEP_STAGED);
    if (status < 0)
        return status;
    struct staging *staging = handle_staging(call.slot);
    status = staging_check(staging, dtype);
    if (status < 0)
        return call_end(&call, status);
    staging_copy_in(staging, data, grad);
    int result = call_step(&call);
    if (result > 0)
        staging_copy_out(staging, data);
    return call_end(&call, result);
}

API(step_f64)
int opt_step_f64(int opt, double *data, const double *grad)
{
    return step_staged(opt, "float64", data, grad);
}

API(step_f32)
int opt_step_f32(int opt, float *data, const float *grad) { return step_staged(opt, "float32", data, grad); }

API(bind_sparse)
int opt_bind_sparse(int opt, const char *name, const char *dtype, int64_t rows, int64_t columns, void *data,
                    int64_t capacity, const int64_t *count, const int64_t *indices, void *grad_rows)
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
    int status = call_begin(&call, opt, CALL_BIND);
    if (status < 0)
        return status;
    int result = runtime.python->bind_sparse(opt, name, dtype, rows, columns, data, capacity, count, indices,
                                             grad_rows);
    if (result > 0)
        staging_remove(handle_staging(call.slot), name);
    return call_end(&call, result);
}

API(group)
int opt_group(int opt, const char *options)
{
    if (!options)
        return fail(OPT_EINVAL, "options must not be NULL");
    struct call call;
    int status = call_begin(&call, opt, CALL_GROUP);
    return status < 0 ? status : call_end(&call, runtime.python->group(opt, options));
}

/* ---- many ranks ---- */

API(distribute)
int opt_distribute(int opt, const char *placement, opt_collective collective, void *user, int rank, int size)
{
    if (!placement)
        return fail(OPT_EINVAL, "placement must not be NULL");
    if (size < 0 || (collective && size == 0))
        return fail(OPT_EINVAL, "size must be positive, got %d", size);
    if (rank < 0 || (size ? rank >= size : rank > 0))
        return fail(OPT_EINVAL, "rank must be 0 to %d, got %d", size ? size - 1 : 0, rank);
    struct call call;
    int status = call_begin(&call, opt, CALL_DISTRIBUTE);
    if (status < 0)
        return status;
    return call_end(&call, runtime.python->distribute(opt, placement, collective, user, rank, size));
}

API(bind_block)
int opt_bind_block(int opt, const char *name, int ndim, const int64_t *global_shape, const int64_t *offset,
                   const int64_t *shape)
{
    if (!name)
        return fail(OPT_EINVAL, "name must not be NULL");
    if (ndim < 1)
        return fail(OPT_EINVAL, "ndim must be positive, got %d", ndim);
    if (!global_shape)
        return fail(OPT_EINVAL, "global_shape must not be NULL");
    if (!offset)
        return fail(OPT_EINVAL, "offset must not be NULL");
    struct call call;
    int status = call_begin(&call, opt, CALL_BIND_BLOCK);
    if (status < 0)
        return status;
    return call_end(&call, runtime.python->bind_block(opt, name, ndim, global_shape, offset, shape));
}

/* ---- functions of the host's ---- */

API(step_closure)
int opt_step_closure(int opt, opt_callback closure, void *user, double *loss)
{
    if (!closure)
        return fail(OPT_EINVAL, "closure must not be NULL");
    struct call call;
    int status = call_begin(&call, opt, CALL_STEP_CLOSURE);
    double first;
    if (status == OPT_OK)
        status = call_end(&call, runtime.python->step_closure(opt, closure, user, &first));
    if (status == OPT_OK && loss)
        *loss = first;
    return status;
}

API(iterate)
int opt_iterate(int opt, double loss)
{
    struct call call;
    int status = call_begin(&call, opt, CALL_ITERATE);
    int wanted = 0;
    if (status == OPT_OK)
        status = call_end(&call, runtime.python->iterate(opt, loss, &wanted));
    return status < 0 ? status : wanted ? OPT_EVALUATE : OPT_DONE;
}

API(check_gradient)
int opt_check_gradient(int opt, opt_callback closure, void *user, double *error)
{
    if (!closure)
        return fail(OPT_EINVAL, "closure must not be NULL");
    struct call call;
    int status = call_begin(&call, opt, CALL_CHECK_GRADIENT);
    double found;
    if (status == OPT_OK)
        status = call_end(&call, runtime.python->check_gradient(opt, closure, user, &found));
    if (status == OPT_OK && error)
        *error = found;
    return status;
}

API(check_gradient_iterate)
int opt_check_gradient_iterate(int opt, double loss, double *error)
{
    struct call call;
    int status = call_begin(&call, opt, CALL_ITERATE);
    int wanted = 0;
    double found;
    if (status == OPT_OK)
        status = call_end(&call, runtime.python->check_gradient_iterate(opt, loss, &wanted, &found));
    if (status == OPT_OK && !wanted && error)
        *error = found;
    return status < 0 ? status : wanted ? OPT_EVALUATE : OPT_DONE;
}

API(schedule_callback)
int opt_schedule_callback(int opt, const char *spec, opt_callback function, void *user)
{
    if (!spec)
        return fail(OPT_EINVAL, "spec must not be NULL");
    if (!function)
        return fail(OPT_EINVAL, "function must not be NULL");
    return schedule(opt, spec, function, user);
}

/* ---- GPUs ---- */

API(stream)
int opt_stream(int opt, void *stream)
{
    struct call call;
    int status = call_begin(&call, opt, CALL_STREAM);
    return status < 0 ? status : call_end(&call, runtime.python->stream(opt, stream));
}

API(grad_scale)
int opt_grad_scale(int opt, const void *scale, const void *found_inf)
{
    struct call call;
    int status = call_begin(&call, opt, CALL_GRAD_SCALE);
    return status < 0 ? status : call_end(&call, runtime.python->grad_scale(opt, scale, found_inf));
}

/* ---- averages ---- */

API(average)
int opt_average(int opt, const char *spec)
{
    if (!spec)
        return fail(OPT_EINVAL, "spec must not be NULL");
    struct call call;
    int status = call_begin(&call, opt, CALL_AVERAGE);
    return status < 0 ? status : call_end(&call, runtime.python->average(opt, spec));
}

API(average_get)
int opt_average_get(int opt, const char *name, void *data)
{
    if (!name)
        return fail(OPT_EINVAL, "name must not be NULL");
    if (!data)
        return fail(OPT_EINVAL, "data must not be NULL");
    struct call call;
    int status = call_begin(&call, opt, CALL_AVERAGE_GET);
    return status < 0 ? status : call_end(&call, runtime.python->average_get(opt, name, data));
}

API(average_swap)
int opt_average_swap(int opt)
{
    struct call call;
    int status = call_begin(&call, opt, CALL_AVERAGE_SWAP);
    return status < 0 ? status : call_end(&call, runtime.python->average_swap(opt));
}

/* ---- methods of classes outside torch ---- */

API(call)
int opt_call(int opt, const char *method)
{
    if (!method)
        return fail(OPT_EINVAL, "method must not be NULL");
    struct call call;
    int status = call_begin(&call, opt, CALL_CALL);
    return status < 0 ? status : call_end(&call, runtime.python->call(opt, method));
}
