/* Memory between two pages that nobody may touch, and what layouts of arrays in it mean. */
#include "fuzz.h"

/* ---- memory ---- */

void make_arena(struct arena *arena, size_t size)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    unsigned char *all = mmap(NULL, size + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(all != MAP_FAILED && mprotect(all + page, size, PROT_READ | PROT_WRITE) == 0);
    *arena = (struct arena){.bytes = all + page, .size = size};
}

void make_watched_arena(struct arena *arena, size_t size)
{
    make_arena(arena, size);
    arena->shadow = calloc(size, 1);
    arena->lent = calloc(size, 1);
    CHECK(arena->shadow && arena->lent);
}

/* Fill in values that are small numbers in every dtype: 16 bits each from 0x3C00 to 0x3FFF, and a sign. */
void make_values(struct fuzzer *f)
{
    for (size_t i = 0; i < sizeof f->small; i += 2) {
        unsigned lane = (unsigned)(0x3C00 + below(f, 0x400)) ^ (one_in(f, 2) ? 0x8000u : 0);
        f->small[i] = (unsigned char)lane, f->small[i + 1] = (unsigned char)(lane >> 8);
        f->wild[i] = (unsigned char)next(f), f->wild[i + 1] = (unsigned char)next(f);
    }
}

/* Write as the host does, to bytes that are lent as `kind` and nothing else. */
void scribble(struct fuzzer *f, struct optimizer *o, int kind)
{
    const unsigned char *values = (one_in(f, 12) ? f->wild : f->small) + 16 * below(f, ARENA / 16);
    struct arena *arena = &o->arrays;
    for (size_t i = 0; i < arena->size; i++)
        if (o->shared ? i >= ARENA / 4 && i < 3 * ARENA / 4 : arena->lent[i] == kind)
            arena->bytes[i] = arena->shadow[i] = values[i];
}

/* Say which rows have a gradient; what is in the arena then is the host's. */
void scribble_indices(struct fuzzer *f, struct optimizer *o)
{
    struct arena *arena = &o->indices;
    for (int i = 0; i < o->count; i++) {
        const struct parameter *p = &o->parameters[i];
        if (!p->rows)
            continue;
        int64_t count = one_in(f, 8) ? odd_integer(f) : below(f, (size_t)p->capacity + 1);
        memcpy(arena->bytes, &count, sizeof count);
        for (int64_t j = 0; j < p->capacity; j++) {
            int64_t row = one_in(f, 40) ? odd_integer(f) : below(f, (size_t)p->rows);
            memcpy(arena->bytes + arena->size - (size_t)(p->capacity - j) * sizeof row, &row, sizeof row);
        }
    }
    memcpy(arena->shadow, arena->bytes, arena->size);
}

float *scale_of(struct optimizer *o)
{
    return (float *)(void *)(o->numbers.bytes + o->numbers.size - sizeof(float));
}

float *found_inf_of(struct optimizer *o) { return (float *)(void *)o->numbers.bytes; }

/* Choose another scale, and whether the next steps are left out: 1 says so, as torch.amp.GradScaler does. */
void scribble_numbers(struct fuzzer *f, struct optimizer *o)
{
    const float scales[] = {1, 2, 1024, 0.5f, -1, 0, INFINITY, NAN, 1e-40f};
    *scale_of(o) = scales[below(f, sizeof scales / sizeof *scales)];
    *found_inf_of(o) = (float)one_in(f, 3);
    memcpy(o->numbers.shadow, o->numbers.bytes, o->numbers.size);
}

/* ---- what layouts mean ---- */

/* Return how many elements there are from the first to the last; INT64_MAX if more than can be. */
int64_t extent(const struct layout *l)
{
    int64_t last = 0, count = 1;
    for (int i = 0; i < l->ndim; i++) {
        int64_t step;
        if (l->shape[i] <= 0)
            return 0;
        if (__builtin_mul_overflow(l->shape[i] - 1, l->strides[i], &step) ||
            __builtin_add_overflow(last, step, &last) || __builtin_mul_overflow(count, l->shape[i], &count))
            return INT64_MAX;
    }
    return last < 0 ? 0 : last < INT64_MAX ? last + 1 : INT64_MAX;
}

void set_row_major(struct layout *l)
{
    int64_t step = 1;
    for (int i = l->ndim; i-- > 0;) {
        l->strides[i] = step;
        if (__builtin_mul_overflow(step, l->shape[i] > 0 ? l->shape[i] : 1, &step))
            step = INT64_MAX;
    }
}

int64_t elements(const struct layout *l)
{
    int64_t count = 1;
    for (int i = 0; i < l->ndim; i++)
        count *= l->shape[i];
    return count;
}

/* Mark the bytes of an array, of which no two elements may share any. */
static void mark(struct fuzzer *f, unsigned char *lent, size_t offset, const struct layout *l, int size,
                 int kind)
{
    int64_t at[DIMENSIONS] = {0};
    static _Thread_local unsigned char seen[ARENA];
    memset(seen, 0, sizeof seen);
    for (int64_t n = elements(l); n > 0; n--) {
        size_t where = offset;
        for (int i = 0; i < l->ndim; i++)
            where += (size_t)(at[i] * l->strides[i]) * (size_t)size;
        if (seen[where])
            failed(f, "a bind has taken elements that share memory");
        memset(seen + where, 1, (size_t)size);
        for (int i = 0; i < size; i++)
            lent[where + (size_t)i] |= (unsigned char)kind;
        for (int i = l->ndim; i-- > 0 && ++at[i] == l->shape[i];)
            at[i] = 0;
    }
}

void mark_all(struct fuzzer *f, struct optimizer *o)
{
    memset(o->arrays.lent, 0, o->arrays.size);
    for (int i = 0; i < o->count; i++) {
        const struct parameter *p = &o->parameters[i];
        mark(f, o->arrays.lent, p->data, &p->layout, dtype_sizes[p->dtype], DATA);
        mark(f, o->arrays.lent, p->grad, &p->grad_layout, dtype_sizes[p->dtype], GRAD);
    }
}
