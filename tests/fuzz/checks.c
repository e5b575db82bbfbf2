/* What every call must leave. */
#include "fuzz.h"

const struct function functions[] = {
    {"opt_create", try_create, 0, 6},
    {"opt_bind", try_bind, HANDLE | BARRED, 8},
    {"opt_step", try_step, DATA | HANDLE | BARRED, 30},
    {"opt_free", try_free, DATA | HANDLE | BARRED, 2},
    {"opt_zero_grad", try_zero_grad, GRAD | HANDLE, 4},
    {"opt_clip_grad_norm", try_clip_grad_norm, GRAD | HANDLE, 5},
    {"opt_clip_grad_value", try_clip_grad_value, GRAD | HANDLE, 4},
    {"opt_get", try_get, HANDLE, 6},
    {"opt_set", try_set, HANDLE | BARRED, 5},
    {"opt_set_value", try_set_value, HANDLE | BARRED, 8},
    {"opt_schedule", try_schedule, HANDLE | BARRED, 4},
    {"opt_schedule_step", try_schedule_step, HANDLE | BARRED, 6},
    {"opt_schedule_step_metric", try_schedule_step_metric, HANDLE | BARRED, 4},
    {"opt_error", try_error, 0, 1},
    {"opt_error_status", try_error_status, 0, 1},
    {"opt_warning", try_warning, 0, 2},
    {"opt_traceback", try_traceback, 0, 1},
    {"opt_bind_nd", try_bind_nd, HANDLE | BARRED, 14},
    {"opt_bind_sparse", try_bind_sparse, HANDLE | BARRED, 7},
    {"opt_step_f64", try_step_f64, 0, 2},
    {"opt_step_f32", try_step_f32, 0, 2},
    {"opt_group", try_group, HANDLE | BARRED, 3},
    {"opt_distribute", try_distribute, HANDLE | BARRED, 1},
    {"opt_bind_block", try_bind_block, HANDLE | BARRED, 1},
    {"opt_step_closure", try_step_closure, DATA | HANDLE | BARRED, 10},
    {"opt_iterate", try_iterate, DATA | HANDLE | BARRED, 16},
    {"opt_check_gradient", try_check_gradient, DATA | GRAD | HANDLE | BARRED, 3},
    {"opt_schedule_callback", try_schedule_callback, HANDLE | BARRED, 4},
    {"opt_stream", try_stream, HANDLE | BARRED, 2},
    {"opt_grad_scale", try_grad_scale, HANDLE | BARRED, 5},
    {"opt_average", try_average, HANDLE | BARRED, 2},
    {"opt_average_get", try_average_get, HANDLE, 4},
    {"opt_average_swap", try_average_swap, DATA | HANDLE | BARRED, 4},
    {"opt_call", try_call, HANDLE | BARRED, 1},
    {"opt_checkpoint", try_checkpoint, HANDLE | BARRED, 1},
    {"opt_attribute", try_attribute, HANDLE | BARRED, 1},
    {"opt_attribute_get", try_attribute_get, HANDLE, 1},
    {"opt_save", try_save, HANDLE | BARRED, 1},
    {"opt_load", try_load, DATA | HANDLE | BARRED, 1},
    {"opt_save_memory", try_save_memory, HANDLE | BARRED, 3},
    {"opt_load_memory", try_load_memory, DATA | HANDLE | BARRED, 5},
    {"opt_init", try_init, 0, 2},
    {"opt_describe", try_describe, HANDLE, 4},
    {"opt_list", try_list, 0, 2},
    {"opt_log", try_log, 0, 1},
    {"opt_version", try_version, 0, 1},
};
const int function_count = sizeof functions / sizeof *functions;

/* ---- what every call must leave ---- */

static size_t utf8_length(const unsigned char *s)
{
    static const unsigned char least[] = {0, 0, 0x80, 0, 0};
    size_t n = *s < 0x80                 ? 1
               : *s >= 0xC2 && *s < 0xE0 ? 2
               : (*s & 0xF0) == 0xE0     ? 3
               : *s >= 0xF0 && *s < 0xF5 ? 4
                                         : 0;
    unsigned low = n == 3 && *s == 0xE0 ? 0xA0 : n == 4 && *s == 0xF0 ? 0x90 : least[2];
    unsigned high = n == 3 && *s == 0xED ? 0x9F : n == 4 && *s == 0xF4 ? 0x8F : 0xBF;
    for (size_t i = 1; i < n; i++)
        if (s[i] < (i == 1 ? low : 0x80) || s[i] > (i == 1 ? high : 0xBF))
            return 0;
    return n;
}

void check_text(struct frame *c, const char *text)
{
    for (const unsigned char *s = (const unsigned char *)text; *s;) {
        size_t n = utf8_length(s);
        if (!n)
            failed(c->fuzzer, "a text is not UTF-8: %s", quoted(text));
        s += n;
    }
}

void check_message(struct frame *c, int status)
{
    const char *message = opt_error();
    check_text(c, message);
    check_text(c, opt_traceback());
    int told = opt_error_status();
    if (status < 0 && (status == NO_TEXT ? told < OPT_EIO || told >= 0 : told != status))
        failed(c->fuzzer, "opt_error_status() is %d after a call that returned %d", told, status);
    if (status >= 0) {
        if (!c->callbacks && strcmp(message, c->sentinel) != 0)
            failed(c->fuzzer, "a call that succeeds has left a message");
        return;
    }
    if (!message[0] || strcmp(message, c->sentinel) == 0)
        failed(c->fuzzer, "a call that fails has left no message");
    for (const char *s = message; *s; s++)
        if ((unsigned char)*s < ' ')
            failed(c->fuzzer, "a message has more than one line");
}

void check_status(struct frame *c, int status)
{
    const char *name = functions[c->which].name;
    int is_iterate = strcmp(name, "opt_iterate") == 0, is_create = strcmp(name, "opt_create") == 0;
    if (c->cut_short && status != c->cut_short)
        failed(c->fuzzer, "%s returned %d where its callback had failed with %d", name, status, c->cut_short);
    if (status < OPT_EIO && status != NO_TEXT && status != c->cut_short)
        failed(c->fuzzer, "%s returned %d, which is no status", name, status);
    if (status > (is_create ? INT_MAX : is_iterate ? OPT_EVALUATE : OPT_OK) || (is_create && status == 0))
        failed(c->fuzzer, "%s returned %d", name, status);
    int flags = functions[c->which].flags;
    if (status >= 0 && !c->optimizer && c->handle && flags & HANDLE)
        failed(c->fuzzer, "%s has taken a handle that is none", name);
    for (int i = 0; i < c->fuzzer->depth - 1; i++)
        if (status >= 0 && c->optimizer && c->fuzzer->frames[i].optimizer == c->optimizer && flags & BARRED)
            failed(c->fuzzer, "%s does what no callback may", name);
}

/* Check one arena: bytes that the call may not write are as before.  While a step is under way, and calls
 * back, its parameters are in flux. */
static void check_arena(struct frame *c, struct arena *arena, int writes, int flux, int by_host)
{
    if (memcmp(arena->bytes, arena->shadow, arena->size) == 0)
        return;
    for (size_t i = 0; i < arena->size; i++) {
        int lent = arena->lent[i];
        if (arena->bytes[i] == arena->shadow[i] || lent & flux)
            continue;
        if (!(lent & writes) && !(by_host && lent == (DATA | GRAD)))
            failed(c->fuzzer, "byte %zu of the arena, %s, has changed from %02x to %02x", i,
                   lent == 0      ? "which is not lent"
                   : lent == DATA ? "a parameter's"
                   : lent == GRAD ? "a gradient's"
                                  : "a parameter's and a gradient's",
                   arena->shadow[i], arena->bytes[i]);
        arena->shadow[i] = arena->bytes[i];
    }
}

/* A step by opt_iterate that ends early leaves the parameters as they were before it. */
static void check_undone(struct frame *c)
{
    const struct optimizer *o = c->optimizer;
    for (size_t i = 0; i < o->arrays.size; i++)
        if (o->arrays.lent[i] == DATA && o->arrays.bytes[i] != o->start[i])
            failed(c->fuzzer, "byte %zu of the arena is not as before the step that has been given up", i);
}

/* A hyperparameter that is larger than a dtype can hold, by a spec or a schedule, or a schedule's momentum
 * for sparse gradients in half precision, is noticed in the middle of a step: docs/guarantees.md says so. */
static int is_half_made(int status)
{
    const char *const words[] = {"without overflow", "Numerical result out of range", "cadd_sparse"};
    for (size_t i = 0; status < 0 && i < sizeof words / sizeof *words; i++)
        if (strstr(opt_error(), words[i]))
            return 1;
    return 0;
}

void check_arrays(struct frame *c, int status)
{
    struct optimizer *o = c->optimizer;
    if (!o || o->shared)
        return;
    const char *name = functions[c->which].name;
    int is_iterate = strcmp(name, "opt_iterate") == 0, is_free = strcmp(name, "opt_free") == 0;
    int gives_up = o->iterating && ((is_iterate && status < 0) || (is_free && status == OPT_OK));
    int is_half = is_half_made(status);
    int writes = status >= 0 || gives_up || is_half ? functions[c->which].flags & (DATA | GRAD) : 0;
    if (is_free && !gives_up)
        writes = 0;
    if (strcmp(name, "opt_check_gradient") == 0)
        writes = c->callbacks ? GRAD : 0; /* which are as before what the callbacks have written */
    if (strcmp(name, "opt_step") == 0 && writes)
        writes = (o->found_inf && *o->found_inf != 0 ? 0 : DATA) | (o->scale ? GRAD : 0);
    if (is_iterate && status == OPT_EVALUATE && !o->iterating)
        memcpy(o->start, o->arrays.shadow, o->arrays.size);
    check_arena(c, &o->arrays, writes, o->stepping ? DATA : 0, c->callbacks);
    check_arena(c, &o->indices, 0, 0, 0);
    check_arena(c, &o->numbers, 0, 0, 0);
    if (gives_up && !is_half)
        check_undone(c);
    if (is_iterate)
        o->iterating = status == OPT_EVALUATE;
    if (is_free && status == OPT_OK)
        forget(c->fuzzer, o);
}

void check_output(struct frame *c, int status)
{
    const unsigned char *bytes = c->output.bytes;
    size_t kept = c->output.size - (status >= 0 ? c->output_size : 0);
    if (kept && (bytes[0] != 0xA5 || memcmp(bytes, bytes + 1, kept - 1) != 0))
        failed(c->fuzzer, "memory that is no result's has changed");
    memset(c->output.bytes + kept, 0xA5, c->output.size - kept);
}

void check_quietness(struct fuzzer *f)
{
    char text[400] = "";
    if (lseek(quiet, 0, SEEK_END) == 0)
        return;
    CHECK(pread(quiet, text, sizeof text - 1, 0) >= 0);
    failed(f, "something was printed: %s", text);
}
