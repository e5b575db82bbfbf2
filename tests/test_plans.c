/* Steps without Python: made while another thread keeps Python to itself, and by many threads at once. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>

#include "check.h"

enum { THREADS = 8, STEPS = 1000 };

struct walk {
    int opt;
    double w[3], dw[3];
};

static void start(struct walk *walk, const char *spec)
{
    *walk = (struct walk){.opt = opt_create(spec), .dw = {-1, -2, -4}};
    CHECK(opt_bind(walk->opt, "w", "float64", 3, walk->w, walk->dw) == OPT_OK);
    CHECK(opt_step(walk->opt) == OPT_OK); /* Python makes the first, and states the next */
    CHECK(strstr(opt_describe(walk->opt), "without Python"));
}

static void *go(void *walk)
{
    for (int i = 1; i < STEPS; i++)
        CHECK(opt_step(((struct walk *)walk)->opt) == OPT_OK);
    return NULL;
}

static void all_go(struct walk walks[THREADS])
{
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++)
        CHECK(pthread_create(&threads[i], NULL, go, &walks[i]) == 0);
    for (int i = 0; i < THREADS; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
}

/* Eight threads that have never called us step eight optimizers, and this one has the GIL all the while. */
static void threads_need_no_gil(void)
{
    struct walk walks[THREADS];
    for (int i = 0; i < THREADS; i++)
        start(&walks[i], "SGD(lr=0.5)");
    int (*take)(void) = (int (*)(void))dlsym(RTLD_DEFAULT, "PyGILState_Ensure");
    void (*give)(int) = (void (*)(int))dlsym(RTLD_DEFAULT, "PyGILState_Release");
    CHECK(take && give);
    int state = take();
    all_go(walks);
    give(state);
    for (int i = 0; i < THREADS; i++) {
        CHECK(walks[i].w[0] == 0.5 * STEPS && walks[i].w[1] == STEPS && walks[i].w[2] == 2.0 * STEPS);
        CHECK(opt_free(walks[i].opt) == OPT_OK);
    }
}

/* A scheduler looks whether the optimizer steps, and warns if not. */
static void schedulers_are_content(void)
{
    struct walk walk;
    start(&walk, "SGD(lr=1)");
    CHECK(opt_schedule(walk.opt, "StepLR(step_size=2, gamma=0.5)") == OPT_OK);
    for (int i = 0; i < 6; i++) {
        CHECK(opt_step(walk.opt) == OPT_OK);
        CHECK(opt_schedule_step(walk.opt) == OPT_OK);
    }
    CHECK(walk.w[0] == 1 + 2 * (1 + 0.5 + 0.25));
    CHECK(strstr(opt_describe(walk.opt), "without Python"));
    CHECK(strcmp(opt_warning(), "") == 0);
    CHECK(opt_free(walk.opt) == OPT_OK);
}

/* A handle that is freed takes its plan along, and the next one in its place begins without. */
static void plans_end_with_their_handles(void)
{
    struct walk first, second;
    start(&first, "SGD(lr=1)");
    CHECK(opt_free(first.opt) == OPT_OK);
    CHECK_FAILS(OPT_EHANDLE, "is not an optimizer", opt_step(first.opt));
    CHECK(first.w[0] == 1);
    start(&second, "SGD(lr=0.25)");
    CHECK(opt_step(second.opt) == OPT_OK);
    CHECK(first.w[0] == 1 && second.w[0] == 0.5);
    CHECK(opt_free(second.opt) == OPT_OK);
}

int main(void)
{
    int output = check_quiet();
    CHECK(opt_init("plans=True") == OPT_OK);
    threads_need_no_gil();
    schedulers_are_content();
    plans_end_with_their_handles();
    CHECK(strstr(opt_describe(0), "plans: True\n"));
    check_was_quiet(output);
    return 0;
}
