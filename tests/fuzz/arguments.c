/* Arguments: mostly such as a host gives, and now and then hostile ones; and how they are shown. */
#include "fuzz.h"

/* ---- arguments ---- */

/* Copy what a call gets to the end of an arena of its own, or NULL. */
const void *lend(struct frame *c, const void *bytes, size_t size)
{
    if (!bytes)
        return NULL;
    struct arena *arena = &c->inputs[c->inputs_used++];
    return memcpy(arena->bytes + arena->size - size, bytes, size);
}

static void make_giant(struct fuzzer *f, char *text)
{
    const char *const units[] = {"A", "(", "a=1,", ",", "'", " ", "9", "\xc3\xbc", "\xff", "#", "\\", NULL};
    const char *unit = any(f, units), *head = one_in(f, 2) ? any(f, optimizers) : "";
    size_t size = one_in(f, 4) ? GIANT - 200 : (size_t)below(f, 70000), length = strlen(unit);
    char *end = text + strlen(strcpy(text, head));
    for (size_t n = 0; n + length < size; n += length)
        end = (char *)memcpy(end, unit, length) + length;
    *end = '\0';
}

/* Make a string: mostly one of a table.  What text can do is tests/test_fuzz_texts.py's, which shrinks it. */
const char *a_string(struct frame *c, const char *const *table)
{
    struct fuzzer *f = c->fuzzer;
    char *text = f->text;
    int way = below(f, 200);
    strcpy(text, any(f, table));
    if (way == 0)
        return NULL;
    if (way < 4)
        text[0] = '\0';
    else if (way == 4)
        make_giant(f, text);
    else if (way < 8)
        for (int i = 0, n = below(f, 60); i <= n; i++)
            text[i] = (char)(i < n ? 1 + below(f, 255) : 0);
    for (char *slash = text; table == paths && way < 8 && (slash = strchr(slash, '/'));)
        *slash = '_'; /* files stay in the folder */
    return lend(c, text, strlen(text) + 1);
}

/* Where a string is one that is known: its number, or -1. */
int find(const char *const *table, const char *text)
{
    for (int i = 0; text && table[i]; i++)
        if (strcmp(table[i], text) == 0)
            return i;
    return -1;
}

uint64_t hash(const char *text)
{
    uint64_t h = 14695981039346656037u;
    for (; *text; text++)
        h = (h ^ (unsigned char)*text) * 1099511628211u;
    return h;
}

struct parameter *find_parameter(struct optimizer *o, const char *name)
{
    for (int i = 0; o && name && i < o->count; i++)
        if (o->parameters[i].name == hash(name))
            return &o->parameters[i];
    return NULL;
}

void make_strides(struct fuzzer *f, struct layout *l)
{
    set_row_major(l);
    int way = below(f, 8);
    if (way == 0 && l->ndim > 1) { /* columns first */
        int64_t step = 1;
        for (int i = 0; i < l->ndim; i++)
            l->strides[i] = step, step *= l->shape[i] > 0 ? l->shape[i] : 1;
    } else if (way == 1) /* gaps */
        for (int i = 0, by = 2 + below(f, 3); i < l->ndim; i++)
            l->strides[i] *= by;
    else if (way == 2)
        for (int i = 0; i < l->ndim; i++)
            l->strides[i] = one_in(f, 6) ? odd_integer(f) : below(f, 40);
}

void make_layout(struct fuzzer *f, struct layout *l)
{
    memset(l, 0, sizeof *l);
    l->ndim = below(f, 4);
    if (one_in(f, 30))
        l->ndim = below(f, DIMENSIONS + 1);
    for (int i = 0; i < l->ndim; i++) {
        l->shape[i] =
            l->ndim == 1 ? 1 + below(f, one_in(f, 8) ? 2000 : 30) : 1 + below(f, l->ndim < 5 ? 7 : 2);
        if (l->ndim > 16)
            l->shape[i] = 1; /* else too many for the arena */
        if (one_in(f, 40))
            l->shape[i] = odd_integer(f);
    }
    make_strides(f, l);
}

/* Choose where an array of so many bytes lies: at either end of the arena, in between, or on another. */
size_t a_place(struct frame *c, int64_t bytes, int size)
{
    struct fuzzer *f = c->fuzzer;
    const struct optimizer *o = c->optimizer;
    if (bytes > ARENA)
        return 0;
    size_t room = ARENA - (size_t)bytes;
    size_t between = (size_t)below(f, room / (size_t)size + 1) * (size_t)size;
    size_t choices[] = {0, room, between, between, between};
    if (o && o->count && one_in(f, 6)) {
        const struct parameter *p = &o->parameters[below(f, (size_t)o->count)];
        choices[0] = p->data, choices[1] = p->grad, choices[2] = p->data + (size_t)size;
    }
    if (one_in(f, 40))
        choices[0] = between + (size_t)below(f, 8); /* seldom aligned */
    size_t place = choices[below(f, 5)];
    place = place <= room ? place : between;
    return place;
}

int is_inside(size_t place, int64_t count, int size)
{
    return count <= ARENA && place + (size_t)count * (size_t)size <= ARENA;
}

/* ---- what is called, for people ---- */

const char *quoted(const char *text)
{
    static _Thread_local char places[4][520];
    static _Thread_local int turn;
    char *place = places[turn++ % 4], *end = place;
    if (!text)
        return "NULL";
    *end++ = '"';
    for (const char *s = text; *s && end - place < 480; s++)
        end += (unsigned char)*s < ' ' || (unsigned char)*s > '~'
                   ? sprintf(end, "\\x%02x", (unsigned char)*s)
                   : sprintf(end, *s == '"' ? "\\\"" : "%c", *s);
    sprintf(end, strlen(text) > 480 ? "\"... (%zu bytes)" : "\"", strlen(text));
    return place;
}

const char *listed(const int64_t *values, int count)
{
    static _Thread_local char places[3][600];
    static _Thread_local int turn;
    char *place = places[turn++ % 3];
    if (!values)
        return "NULL";
    char *end = place + sprintf(place, "{");
    for (int i = 0; i < count && end - place < 540; i++)
        end += sprintf(end, i ? ", %lld" : "%lld", (long long)values[i]);
    strcpy(end, end - place < 540 ? "}" : ", ...}");
    return place;
}

__attribute__((format(printf, 2, 3))) void note(struct frame *c, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(c->text, sizeof c->text, format, arguments);
    va_end(arguments);
}
