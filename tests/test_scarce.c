/* Steps without Python while memory runs out: each of them is made as a whole, or not at all.
 *
 * This host has an allocator of its own, which can be told how much is left. */
#define _GNU_SOURCE
#include <malloc.h>
#include <stdatomic.h>

#include "check.h"

void *__libc_malloc(size_t size);
void __libc_free(void *memory);

static const char *const ADAM = "Adam(lr=0.1)";

static atomic_int is_scarce;
static atomic_long left; /* bytes, while it is scarce */

void *malloc(size_t size)
{
    if (!is_scarce)
        return __libc_malloc(size);
    void *memory = (long)size > left ? NULL : __libc_malloc(size);
    if (memory)
        left -= (long)malloc_usable_size(memory);
    return memory;
}

void free(void *memory)
{
    if (memory && is_scarce)
        left += (long)malloc_usable_size(memory);
    __libc_free(memory);
}

enum { PARAMETERS = 5, N = 3, STEPS = 3, STRIDE = 48 };

/* Parameters of two dtypes, so that a step is more than one of torch's operators. */
struct walk {
    int opt;
    double w[PARAMETERS][N], dw[PARAMETERS][N];
    float v[PARAMETERS][N], dv[PARAMETERS][N];
};

static void start(struct walk *walk, const char *spec)
{
    memset(walk, 0, sizeof *walk);
    walk->opt = opt_create(spec);
    for (int i = 0; i < PARAMETERS; i++) {
        char name[] = "w0";
        name[1] = (char)('0' + i);
        CHECK(opt_bind(walk->opt, name, "float64", N, walk->w[i], walk->dw[i]) == OPT_OK);
        name[0] = 'v';
        CHECK(opt_bind(walk->opt, name, "float32", N, walk->v[i], walk->dv[i]) == OPT_OK);
        for (int j = 0; j < N; j++)
            walk->dv[i][j] = (float)(walk->dw[i][j] = 1 + i + j);
    }
    for (int i = 0; i < STEPS; i++)
        CHECK(opt_step(walk->opt) == OPT_OK);
}

static int step_with(struct walk *walk, long bytes)
{
    left = bytes;
    is_scarce = 1;
    int status = opt_step(walk->opt);
    is_scarce = 0;
    return status;
}

static void check_is_at(const struct walk *walk, const struct walk *other)
{
    CHECK(memcmp(walk->w, other->w, sizeof walk->w) == 0);
    CHECK(memcmp(walk->v, other->v, sizeof walk->v) == 0);
}

static void a_step_by_name_is_made_as_a_whole_or_not_at_all(void)
{
    struct walk before, after, last;
    CHECK(opt_init("plans='stable'") == OPT_OK);
    start(&before, ADAM), start(&after, ADAM), start(&last, ADAM);
    CHECK(strstr(opt_describe(before.opt), "\nway: stable\n"));
    CHECK(opt_step(after.opt) == OPT_OK);
    CHECK(opt_step(last.opt) == OPT_OK && opt_step(last.opt) == OPT_OK);
    int made = 0;
    for (long bytes = 0; !made; bytes += STRIDE) {
        struct walk walk;
        start(&walk, ADAM);
        int status = step_with(&walk, bytes);
        made = status == OPT_OK;
        if (!made)
            CHECK_FAILS(OPT_ENOMEM, "out of memory: a step needs ", status);
        check_is_at(&walk, made ? &after : &before);
        CHECK(strstr(opt_describe(walk.opt), "\nway: stable\n")); /* and there is memory again */
        CHECK(opt_step(walk.opt) == OPT_OK);
        check_is_at(&walk, made ? &last : &after);
        CHECK(opt_free(walk.opt) == OPT_OK);
        CHECK(bytes > 0 || !made);
    }
    CHECK(opt_free(before.opt) == OPT_OK && opt_free(after.opt) == OPT_OK && opt_free(last.opt) == OPT_OK);
}

static void other_steps_without_python_take_none(const char *spec, const char *way)
{
    struct walk walk, other;
    CHECK(opt_init("plans='direct'") == OPT_OK);
    start(&walk, spec), start(&other, spec);
    CHECK(opt_step(walk.opt) == OPT_OK && opt_step(other.opt) == OPT_OK);
    CHECK(strstr(opt_describe(walk.opt), way));
    CHECK(step_with(&walk, 0) == OPT_OK && opt_step(other.opt) == OPT_OK);
    check_is_at(&walk, &other);
    CHECK(opt_free(walk.opt) == OPT_OK && opt_free(other.opt) == OPT_OK);
}

int main(void)
{
    CHECK(opt_init("num_threads=1") == OPT_OK);
    a_step_by_name_is_made_as_a_whole_or_not_at_all();
    other_steps_without_python_take_none(ADAM, "\nway: direct\n");
    other_steps_without_python_take_none("RMSprop(lr=0.1)", "\nway: recorded\n");
    return 0;
}
