/* Calls that bind parameters, and step and clip them. */
#include "fuzz.h"

/* ---- the calls, one function of the API each ---- */

void forget(struct fuzzer *f, struct optimizer *o)
{
    f->stale[below(f, 32)] = o->handle;
    o->live = o->iterating = o->count = 0;
    o->scale = o->found_inf = NULL;
    memset(o->arrays.lent, 0, o->arrays.size);
}

/* Free an optimizer that has taken arrays which are not there. */
static void free_at_once(struct frame *c)
{
    if (opt_free(c->handle) < 0)
        failed(c->fuzzer, "opt_free fails");
    forget(c->fuzzer, c->optimizer);
}

int try_create(struct frame *c)
{
    struct fuzzer *f = c->fuzzer;
    const char *spec = a_string(c, optimizers);
    note(c, "opt_create(%s)", quoted(spec));
    int opt = opt_create(spec);
    struct optimizer *o = f->pool;
    for (int i = 0; i < LIVE; i++) {
        if (opt > 0 && f->pool[i].live && f->pool[i].handle == opt)
            failed(f, "the handle %d is another optimizer's", opt);
        if (!f->pool[i].live)
            o = &f->pool[i];
    }
    if (opt > 0 && !o->live)
        o->live = 1, o->handle = opt;
    else if (opt > 0)
        CHECK(opt_free(opt) == OPT_OK);
    return opt;
}

int try_free(struct frame *c)
{
    note(c, "opt_free(%d)", c->handle);
    int status = opt_free(c->handle);
    if (status == OPT_OK && c->optimizer && c->optimizer->shared) {
        int i = (int)(c->optimizer - shared);
        shared_handles[i] = opt_create(optimizers[below(c->fuzzer, 12)]);
        CHECK(shared_handles[i] > 0);
    }
    return status; /* the rest is done when its arrays have been looked at */
}

/* On an optimizer that other threads step meanwhile, only what is there. */
static int try_bind_shared(struct frame *c)
{
    struct fuzzer *f = c->fuzzer;
    unsigned char *middle = c->optimizer->arrays.bytes + ARENA / 4;
    int n = 1 + below(f, 500), data = 16 * below(f, 500), grad = 16 * below(f, 500);
    const char *name = a_string(c, names), *dtype = a_string(c, dtypes);
    note(c, "opt_bind(%d, %s, %s, %d, middle + %d, middle + %d)", c->handle, quoted(name), quoted(dtype), n,
         data, grad);
    return opt_bind(c->handle, name, dtype, n, middle + data, middle + grad);
}

/* See that what a bind has accepted can be, and keep it in mind. */
static void accepted(struct frame *c, const char *name, const char *dtype, struct parameter *p)
{
    struct fuzzer *f = c->fuzzer;
    struct optimizer *o = c->optimizer;
    p->name = hash(name);
    p->dtype = find(dtypes, dtype);
    if (!o || p->dtype < 0)
        failed(f, "a bind with a handle or a dtype that is none has succeeded");
    int size = dtype_sizes[p->dtype];
    for (int i = 0; i < p->layout.ndim; i++)
        if (p->layout.shape[i] < 0 || p->layout.strides[i] < 0 || p->grad_layout.strides[i] < 0)
            failed(f, "a bind has taken a negative size or stride");
    if (p->data % (size_t)(size < 8 ? size : 8) || p->grad % (size_t)(size < 8 ? size : 8))
        failed(f, "a bind has taken an address that is not aligned");
    struct parameter *known = find_parameter(o, name);
    int64_t indices = p->rows ? p->capacity : 0;
    if (!is_inside(p->data, extent(&p->layout), size) || !is_inside(p->grad, extent(&p->grad_layout), size) ||
        indices > (int64_t)(o->indices.size / sizeof(int64_t)) - 1 || (!known && o->count == MOST)) {
        free_at_once(c);
        return;
    }
    *(known ? known : &o->parameters[o->count++]) = *p;
    mark_all(f, o);
}

/* Choose the dtype and the layouts of a parameter: the old ones, often, where a name is bound again. */
static void make_parameter(struct frame *c, const struct parameter *known, struct parameter *p)
{
    struct fuzzer *f = c->fuzzer;
    memset(p, 0, sizeof *p);
    p->dtype = below(f, 6);
    make_layout(f, &p->layout);
    if (known && !one_in(f, 4)) {
        p->dtype = known->dtype, p->layout = known->layout;
        make_strides(f, &p->layout);
    }
    p->grad_layout = p->layout;
    if (one_in(f, 4))
        make_strides(f, &p->grad_layout);
}

static void make_places(struct frame *c, struct parameter *p)
{
    int size = dtype_sizes[p->dtype];
    int64_t data = extent(&p->layout), grad = extent(&p->grad_layout);
    p->data = a_place(c, data > ARENA ? INT64_MAX : data * size, size);
    p->grad = a_place(c, grad > ARENA ? INT64_MAX : grad * size, size);
}

void *at(struct frame *c, size_t place)
{
    unsigned char *bytes = (c->optimizer ? c->optimizer : c->fuzzer->pool)->arrays.bytes;
    return one_in(c->fuzzer, 100) ? NULL : bytes + place;
}

/* Name the dtype, or something else. */
static const char *a_dtype(struct frame *c, const struct parameter *p)
{
    return one_in(c->fuzzer, 20) ? a_string(c, dtypes) : dtypes[p->dtype];
}

int try_bind(struct frame *c)
{
    if (c->optimizer && c->optimizer->shared)
        return try_bind_shared(c);
    struct parameter p;
    const char *name = a_string(c, names);
    make_parameter(c, find_parameter(c->optimizer, name), &p);
    p.layout.shape[0] = p.layout.ndim ? p.layout.shape[0] : odd_integer(c->fuzzer);
    p.layout.ndim = 1;
    set_row_major(&p.layout);
    p.grad_layout = p.layout;
    make_places(c, &p);
    const char *dtype = a_dtype(c, &p);
    void *data = at(c, p.data), *grad = at(c, p.grad);
    if (!data && !grad)
        p.data = p.grad = 0; /* they come with each step, and lie nowhere here */
    note(c, "opt_bind(%d, %s, %s, %lld, arena + %zu: %p, arena + %zu: %p)", c->handle, quoted(name),
         quoted(dtype), (long long)p.layout.shape[0], p.data, data, p.grad, grad);
    int status = opt_bind(c->handle, name, dtype, p.layout.shape[0], data, grad);
    if (status == OPT_OK)
        accepted(c, name, dtype, &p);
    return status;
}

/* Lend a shape or strides, of so many values as there are. */
static const int64_t *lend_integers(struct frame *c, const int64_t *values, int ndim)
{
    return lend(c, values, (size_t)(ndim < 0 ? 0 : ndim > DIMENSIONS ? DIMENSIONS : ndim) * sizeof *values);
}

int try_bind_nd(struct frame *c)
{
    if (c->optimizer && c->optimizer->shared)
        return try_bind_shared(c);
    struct fuzzer *f = c->fuzzer;
    struct parameter p;
    const char *name = a_string(c, names);
    make_parameter(c, find_parameter(c->optimizer, name), &p);
    struct layout rows = p.layout;
    set_row_major(&rows);
    int is_plain = memcmp(&rows, &p.layout, sizeof rows) == 0;
    make_places(c, &p);
    const char *dtype = a_dtype(c, &p);
    const char *device = one_in(f, 20) ? a_string(c, devices) : "cpu";
    int ndim = one_in(f, 60) ? (int)odd_integer(f) : p.layout.ndim, size = p.layout.ndim;
    const int64_t *shape = one_in(f, 60) ? NULL : lend_integers(c, p.layout.shape, size);
    const int64_t *strides = is_plain && one_in(f, 2) ? NULL : lend_integers(c, p.layout.strides, size);
    const int64_t *grad_strides = memcmp(&rows, &p.grad_layout, sizeof rows) == 0 && one_in(f, 2)
                                      ? NULL
                                      : lend_integers(c, p.grad_layout.strides, size);
    if (ndim != size && ndim >= 0 && ndim <= 64)
        ndim = size; /* else it would read what is not there, as told */
    void *data = at(c, p.data), *grad = at(c, p.grad);
    if (!data && !grad)
        p.data = p.grad = 0;
    note(c, "opt_bind_nd(%d, %s, %s, %s, %d, %s, arena + %zu: %p, %s, arena + %zu: %p, %s)", c->handle,
         quoted(name), quoted(dtype), quoted(device), ndim, listed(shape, size), p.data, data,
         listed(strides, size), p.grad, grad, listed(grad_strides, size));
    int status = opt_bind_nd(c->handle, name, dtype, device, ndim, shape, data, strides, grad, grad_strides);
    if (status == OPT_OK && ndim != size)
        failed(f, "opt_bind_nd has taken ndim %d", ndim);
    if (status == OPT_OK)
        accepted(c, name, dtype, &p);
    return status;
}

int try_bind_sparse(struct frame *c)
{
    if (c->optimizer && c->optimizer->shared)
        return try_bind_shared(c);
    struct fuzzer *f = c->fuzzer;
    struct parameter p = {.dtype = below(f, 6), .rows = 1 + below(f, 9), .columns = 1 + below(f, 6)};
    const char *name = a_string(c, names);
    const struct parameter *known = find_parameter(c->optimizer, name);
    if (known && known->layout.ndim == 2 && !one_in(f, 4))
        p.dtype = known->dtype, p.rows = known->layout.shape[0], p.columns = known->layout.shape[1];
    p.capacity = 1 + below(f, 8);
    int64_t *odd[] = {&p.rows, &p.columns, &p.capacity};
    if (one_in(f, 8))
        *odd[below(f, 3)] = odd_integer(f);
    p.layout = (struct layout){.ndim = 2, .shape = {p.rows, p.columns}};
    p.grad_layout = (struct layout){.ndim = 2, .shape = {p.capacity, p.columns}};
    set_row_major(&p.layout), set_row_major(&p.grad_layout);
    make_places(c, &p);
    struct arena *indices = &(c->optimizer ? c->optimizer : f->pool)->indices;
    size_t used = p.capacity > 0 && p.capacity < 64 ? (size_t)p.capacity * sizeof(int64_t) : 0;
    const void *count = one_in(f, 60) ? NULL : indices->bytes + one_in(f, 60);
    const void *rows = one_in(f, 60) ? NULL : indices->bytes + indices->size - used - one_in(f, 60);
    void *data = at(c, p.data), *grad = at(c, p.grad);
    const char *dtype = a_dtype(c, &p);
    note(c, "opt_bind_sparse(%d, %s, %s, %lld, %lld, arena + %zu: %p, %lld, %p, %p, arena + %zu: %p)",
         c->handle, quoted(name), quoted(dtype), (long long)p.rows, (long long)p.columns, p.data, data,
         (long long)p.capacity, count, rows, p.grad, grad);
    int status =
        opt_bind_sparse(c->handle, name, dtype, p.rows, p.columns, data, p.capacity, count, rows, grad);
    if (status == OPT_OK && ((uintptr_t)count % 8 || (uintptr_t)rows % 8))
        failed(f, "opt_bind_sparse has taken a count or indices that are not aligned");
    if (status == OPT_OK)
        accepted(c, name, dtype, &p);
    return status;
}

int try_group(struct frame *c)
{
    const char *text = a_string(c, options);
    note(c, "opt_group(%d, %s)", c->handle, quoted(text));
    return opt_group(c->handle, text);
}

static int copies(void *user, const char *what, const char *dtype, const void *send, void *receive,
                  int64_t count)
{
    (void)user, (void)what;
    memcpy(receive, send,
           (size_t)count * (strcmp(dtype, "uint8") == 0     ? 1
                            : strcmp(dtype, "float32") == 0 ? 4
                                                            : 8));
    return 0;
}

int try_distribute(struct frame *c)
{
    static const char *const placements[] = {"Replicate()", "Replicate(), Partial('sum')", "Shard(0)",
                                             "Shard(1)", ""};
    const char *placement = placements[below(c->fuzzer, 5)];
    int rank = (int)below(c->fuzzer, 3) - 1, size = (int)below(c->fuzzer, 3) - 1;
    opt_collective collective = below(c->fuzzer, 2) ? copies : NULL;
    note(c, "opt_distribute(%d, %s, %s, NULL, %d, %d)", c->handle, quoted(placement),
         collective ? "copies" : "NULL", rank, size);
    return opt_distribute(c->handle, placement, collective, NULL, rank, size);
}

int try_bind_block(struct frame *c)
{
    const char *name = a_string(c, names);
    int64_t sizes[9];
    int ndim = (int)below(c->fuzzer, 5) - 1;
    for (int i = 0; i < 9; i++)
        sizes[i] = (int64_t)below(c->fuzzer, 5) - 1;
    int has_shape = (int)below(c->fuzzer, 2);
    note(c, "opt_bind_block(%d, %s, %d, ...)", c->handle, quoted(name), ndim);
    return opt_bind_block(c->handle, name, ndim, sizes, sizes + 3, has_shape ? sizes + 6 : NULL);
}

int try_set(struct frame *c)
{
    int group = a_group(c);
    const char *text = a_string(c, options);
    note(c, "opt_set(%d, %d, %s)", c->handle, group, quoted(text));
    return opt_set(c->handle, group, text);
}

int try_set_value(struct frame *c)
{
    int group = a_group(c);
    const char *name = a_string(c, hyperparameters);
    double value = any_double(c->fuzzer);
    note(c, "opt_set_value(%d, %d, %s, %g)", c->handle, group, quoted(name), value);
    return opt_set_value(c->handle, group, name, value);
}

int try_get(struct frame *c)
{
    int group = a_group(c);
    const char *name = a_string(c, hyperparameters);
    double *value = a_result(c);
    note(c, "opt_get(%d, %d, %s, %p)", c->handle, group, quoted(name), (void *)value);
    return opt_get(c->handle, group, name, value);
}

int try_step(struct frame *c)
{
    note(c, "opt_step(%d)", c->handle);
    return opt_step(c->handle);
}

/* Arrays for one call, of an optimizer that is made for it, or none at all. */
static int try_step_lent(struct frame *c, int is_float64)
{
    struct fuzzer *f = c->fuzzer;
    int64_t n = 1 + below(f, 100);
    size_t value = is_float64 ? sizeof(double) : sizeof(float);
    static _Thread_local unsigned char zeros[100 * sizeof(double)];
    unsigned char *data = c->output.bytes + c->output.size - (size_t)n * value;
    const void *grad = one_in(f, 20) ? NULL : lend(c, zeros, (size_t)n * value);
    c->output_size = (size_t)n * value;
    int opt = opt_create("Adam(lr=0.1)");
    if (opt_bind(opt, "w", is_float64 ? "float64" : "float32", n, NULL, NULL) < 0)
        failed(f, "opt_bind of %lld values that come later: %s", (long long)n, opt_error());
    note(c, "opt_step_f%d(%d, %p, %p)", is_float64 ? 64 : 32, opt, (void *)data, grad);
    void *lent = one_in(f, 20) ? NULL : data;
    int status = is_float64 ? opt_step_f64(opt, lent, grad) : opt_step_f32(opt, lent, grad);
    opt_free(opt);
    return status;
}

int try_step_f64(struct frame *c) { return try_step_lent(c, 1); }

int try_step_f32(struct frame *c) { return try_step_lent(c, 0); }

/* See that a step with a closure is refused where gradients are scaled. */
static int unscaled(struct frame *c, int status)
{
    if (status >= 0 && is_scaled(c->optimizer))
        failed(c->fuzzer, "a step with a closure has been made after opt_grad_scale");
    return status;
}

int try_step_closure(struct frame *c)
{
    opt_callback closure = a_callback(c);
    double *loss = a_result(c);
    note(c, "opt_step_closure(%d, %s, &cookie, %p)", c->handle, closure ? "callback" : "NULL", (void *)loss);
    return unscaled(c, opt_step_closure(c->handle, closure, (void *)&cookie, loss));
}

int try_iterate(struct frame *c)
{
    double loss = any_double(c->fuzzer);
    note(c, "opt_iterate(%d, %g)", c->handle, loss);
    return unscaled(c, opt_iterate(c->handle, loss));
}

int try_check_gradient(struct frame *c)
{
    opt_callback closure = a_callback(c);
    double *error = a_result(c);
    note(c, "opt_check_gradient(%d, %s, &cookie, %p)", c->handle, closure ? "callback" : "NULL",
         (void *)error);
    return unscaled(c, opt_check_gradient(c->handle, closure, (void *)&cookie, error));
}

int try_zero_grad(struct frame *c)
{
    note(c, "opt_zero_grad(%d)", c->handle);
    return opt_zero_grad(c->handle);
}

int try_clip_grad_norm(struct frame *c)
{
    double max_norm = any_double(c->fuzzer), norm_type = any_double(c->fuzzer), *norm = a_result(c);
    int strict = one_in(c->fuzzer, 3) ? (int)odd_integer(c->fuzzer) : 0;
    note(c, "opt_clip_grad_norm(%d, %g, %g, %d, %p)", c->handle, max_norm, norm_type, strict, (void *)norm);
    return opt_clip_grad_norm(c->handle, max_norm, norm_type, strict, norm);
}

int try_clip_grad_value(struct frame *c)
{
    double value = any_double(c->fuzzer);
    note(c, "opt_clip_grad_value(%d, %g)", c->handle, value);
    return opt_clip_grad_value(c->handle, value);
}
