/* Calls about schedules, averages, checkpoints, and the library itself. */
#include "fuzz.h"

int try_schedule(struct frame *c)
{
    const char *spec = a_string(c, schedulers);
    note(c, "opt_schedule(%d, %s)", c->handle, quoted(spec));
    return opt_schedule(c->handle, spec);
}

int try_schedule_callback(struct frame *c)
{
    const char *spec = one_in(c->fuzzer, 2) ? schedulers[below(c->fuzzer, 2)] : a_string(c, schedulers);
    opt_callback function = a_callback(c);
    note(c, "opt_schedule_callback(%d, %s, %s, &cookie)", c->handle, quoted(spec),
         function ? "callback" : "NULL");
    return opt_schedule_callback(c->handle, spec, function, (void *)&cookie);
}

int try_schedule_step(struct frame *c)
{
    note(c, "opt_schedule_step(%d)", c->handle);
    return opt_schedule_step(c->handle);
}

int try_schedule_step_metric(struct frame *c)
{
    double value = any_double(c->fuzzer);
    note(c, "opt_schedule_step_metric(%d, %g)", c->handle, value);
    return opt_schedule_step_metric(c->handle, value);
}

/* No parameter is on a GPU. */
int try_stream(struct frame *c)
{
    struct fuzzer *f = c->fuzzer;
    void *const garbage[] = {f->small, f->small + 1, (void *)next(f), (void *)1, (void *)2, (void *)-1};
    void *stream = one_in(f, 3) ? NULL : garbage[below(f, sizeof garbage / sizeof *garbage)];
    note(c, "opt_stream(%d, %p)", c->handle, stream);
    int status = opt_stream(c->handle, stream);
    if (stream && c->optimizer && !c->optimizer->shared && status != OPT_ESTATE)
        failed(f, "opt_stream returned %d where nothing is on a GPU", status);
    return status;
}

int try_grad_scale(struct frame *c)
{
    struct fuzzer *f = c->fuzzer;
    struct optimizer *o = c->optimizer, *owner = o ? o : f->pool;
    const float *scale = one_in(f, 2) ? scale_of(owner) : NULL;
    const float *found_inf = one_in(f, 2) ? found_inf_of(owner) : NULL;
    int odd = one_in(f, 10) ? 1 + below(f, 3) : 0, is_odd = odd && (scale || found_inf);
    if (one_in(f, 3))
        scale = found_inf = NULL, is_odd = 0;
    const void *a = scale ? (const char *)scale - odd : NULL;
    const void *b = found_inf ? (const char *)found_inf + odd : NULL;
    note(c, "opt_grad_scale(%d, %p, %p)", c->handle, a, b);
    int status = opt_grad_scale(c->handle, a, b);
    if (status == OPT_OK && is_odd)
        failed(f, "opt_grad_scale has taken an address that is not aligned");
    if (status == OPT_EINVAL && !strstr(opt_error(), "is not aligned"))
        failed(f, "opt_grad_scale refuses numbers that are there");
    if (status == OPT_OK && o && !o->shared)
        o->scale = scale, o->found_inf = found_inf;
    return status;
}

int try_average(struct frame *c)
{
    const char *spec = a_string(c, averages);
    note(c, "opt_average(%d, %s)", c->handle, quoted(spec));
    return opt_average(c->handle, spec);
}

int try_average_get(struct frame *c)
{
    struct optimizer *o = c->optimizer;
    const char *name = a_string(c, names);
    const struct parameter *p = find_parameter(o, name);
    c->output_size = p ? (size_t)(elements(&p->layout) * dtype_sizes[p->dtype]) : 0;
    if (o && o->shared)
        c->output_size = c->output.size;
    unsigned char *data = c->output.bytes + c->output.size - c->output_size;
    data = one_in(c->fuzzer, 40) ? NULL : one_in(c->fuzzer, 40) ? data - 1 : data;
    note(c, "opt_average_get(%d, %s, %p)", c->handle, quoted(name), (void *)data);
    return opt_average_get(c->handle, name, data);
}

int try_average_swap(struct frame *c)
{
    note(c, "opt_average_swap(%d)", c->handle);
    return opt_average_swap(c->handle);
}

int try_call(struct frame *c)
{
    const char *method = a_string(c, methods);
    note(c, "opt_call(%d, %s)", c->handle, quoted(method));
    return opt_call(c->handle, method);
}

/* Mostly go back to the optimizer that has saved: those of others refuse its checkpoint. */
static int go_back(struct frame *c, int opt)
{
    for (int i = 0; i < LIVE && c->fuzzer->depth == 1; i++) {
        struct optimizer *o = &c->fuzzer->pool[i];
        if (o->live && o->handle == opt && !one_in(c->fuzzer, 4)) {
            if (c->optimizer)
                c->optimizer->stepping--; /* it is the other that is loaded */
            o->stepping++;
            c->optimizer = o, c->handle = opt;
            return 1;
        }
    }
    return 0;
}

int try_checkpoint(struct frame *c)
{
    const char *text = a_string(c, checkpoint_options);
    note(c, "opt_checkpoint(%d, %s)", c->handle, quoted(text));
    return opt_checkpoint(c->handle, text);
}

int try_attribute(struct frame *c)
{
    char name[sizeof c->fuzzer->text];
    const char *given = a_string(c, names);
    if (given)
        given = strcpy(name, given);
    const char *text = a_string(c, checkpoint_options);
    note(c, "opt_attribute(%d, %s, %s)", c->handle, quoted(given), quoted(text));
    return opt_attribute(c->handle, given, text);
}

int try_attribute_get(struct frame *c)
{
    const char *name = a_string(c, names);
    note(c, "opt_attribute_get(%d, %s)", c->handle, quoted(name));
    const char *text = opt_attribute_get(c->handle, name);
    return text ? OPT_OK : NO_TEXT;
}

int try_save(struct frame *c)
{
    const char *path = a_string(c, paths);
    note(c, "opt_save(%d, %s)", c->handle, quoted(path));
    int status = opt_save(c->handle, path);
    if (status == OPT_OK && strlen(path) < sizeof c->fuzzer->file)
        c->fuzzer->file_by = c->handle, strcpy(c->fuzzer->file, path);
    return status;
}

int try_load(struct frame *c)
{
    const char *path = a_string(c, paths);
    if (go_back(c, c->fuzzer->file_by))
        path = c->fuzzer->file;
    note(c, "opt_load(%d, %s)", c->handle, quoted(path));
    return opt_load(c->handle, path);
}

int try_save_memory(struct frame *c)
{
    struct fuzzer *f = c->fuzzer;
    int is_asked = one_in(f, 4);
    int64_t size = one_in(f, 8) ? below(f, ARENA) : ARENA;
    unsigned char *buffer = is_asked ? NULL : c->output.bytes + ARENA - size;
    if (one_in(f, 20))
        size = odd_integer(f) > 0 ? 0 : odd_integer(f) | INT64_MIN;
    note(c, "opt_save_memory(%d, %p, %lld)", c->handle, (void *)buffer, (long long)size);
    int64_t used = opt_save_memory(c->handle, buffer, size);
    if (used >= 0 && (used == 0 || used > (is_asked ? INT_MAX : size)))
        failed(f, "opt_save_memory returned %lld", (long long)used);
    if (used < 0)
        return (int)used;
    if (!is_asked) {
        f->saved_size = (size_t)used, f->saved_by = c->handle;
        memcpy(f->saved, buffer, f->saved_size);
        memset(buffer, 0xA5, f->saved_size); /* what is beyond must be as it was */
    }
    return OPT_OK;
}

/* Write a checkpoint, or something that has been one. */
int try_load_memory(struct frame *c)
{
    struct fuzzer *f = c->fuzzer;
    static _Thread_local unsigned char bytes[ARENA];
    size_t size = f->saved_size;
    go_back(c, f->saved_by);
    memcpy(bytes, f->saved, size);
    int damage = one_in(f, 2) ? 0 : 1 + below(f, 4);
    if (damage == 1 && size)
        size = (size_t)below(f, size + 1);
    for (int n = damage > 1 && size ? 1 + below(f, 8) : 0; n > 0; n--)
        bytes[below(f, size)] ^= (unsigned char)(1 << below(f, 8));
    if (damage == 2) /* PyTorch's alone, without the seal that would tell */
        size = size > 60 ? size - 60 : size;
    if (damage == 3)
        memcpy(bytes, f->wild, size = (size_t)below(f, 200));
    const void *buffer = one_in(f, 40) ? NULL : lend(c, bytes, size);
    int64_t told = one_in(f, 40) ? (int64_t)(next(f) | (uint64_t)INT64_MIN) : (int64_t)size;
    note(c, "opt_load_memory(%d, %p, %lld), damage %d", c->handle, buffer, (long long)told, damage);
    return opt_load_memory(c->handle, buffer, told);
}

int try_init(struct frame *c)
{
    const char *text = a_string(c, settings);
    note(c, "opt_init(%s)", quoted(text));
    return opt_init(text);
}

static int checked(struct frame *c, const char *text, const char *end)
{
    if (!text)
        return NO_TEXT;
    check_text(c, text);
    size_t length = strlen(text);
    if (length && text[length - 1] != *end)
        failed(c->fuzzer, "a text ends with no newline: %s", quoted(text));
    return OPT_OK;
}

int try_describe(struct frame *c)
{
    if (one_in(c->fuzzer, 20))
        c->handle = 0, c->optimizer = NULL;
    note(c, "opt_describe(%d)", c->handle);
    const char *text = opt_describe(c->handle);
    if (!text && (c->handle == 0 || (c->optimizer && !c->optimizer->shared)))
        failed(c->fuzzer, "opt_describe fails");
    return checked(c, text, "\n");
}

int try_list(struct frame *c)
{
    const char *kind = a_string(c, kinds);
    note(c, "opt_list(%s)", quoted(kind));
    return checked(c, opt_list(kind), "\n");
}

static void ignore_line(void *user, int level, const char *line) { (void)user, (void)level, (void)line; }

int try_log(struct frame *c)
{
    opt_log_function function = one_in(c->fuzzer, 2) ? ignore_line : NULL;
    note(c, "opt_log(%s)", function ? "ignore_line" : "NULL");
    return opt_log(function, NULL);
}

int try_version(struct frame *c)
{
    note(c, "opt_version()");
    return strcmp(opt_version(), OPTPLUG_VERSION) == 0 ? OPT_OK : NO_TEXT;
}

int try_error(struct frame *c)
{
    note(c, "opt_error()");
    return strcmp(opt_error(), c->sentinel) == 0 ? OPT_OK : NO_TEXT;
}

int try_error_status(struct frame *c)
{
    note(c, "opt_error_status()");
    return opt_error_status() == OPT_EHANDLE ? OPT_OK : NO_TEXT; /* the sentinel's */
}

int try_traceback(struct frame *c)
{
    note(c, "opt_traceback()");
    return strcmp(opt_traceback(), "") == 0 ? OPT_OK : NO_TEXT; /* the sentinel has none */
}

int try_warning(struct frame *c)
{
    note(c, "opt_warning()");
    return checked(c, opt_warning(), "\n");
}
