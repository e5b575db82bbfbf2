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

static void *go_round(void *data)
{
    struct walk *walk = data;
    for (int i = 0; i < STEPS / 4; i++) {
        for (int j = 0; j < 3; j++)
            walk->dw[j] = (i + j) % 5 - 2;
        CHECK(opt_clip_grad_norm(walk->opt, 0.5, 2, 0, NULL) == OPT_OK);
        CHECK(opt_step(walk->opt) == OPT_OK);
        CHECK(opt_schedule_step(walk->opt) == OPT_OK);
    }
    return NULL;
}

/* Records of steps, schedulers and averages run on many threads at once as on one. */
static void whole_loops_need_no_gil(void)
{
    const char *const specs[] = {"RMSprop(lr=0.5, momentum=0.9)", "NAdam(lr=0.5)", "AdamW(lr=0.5)"};
    for (int k = 0; k < 3; k++) {
        struct walk walks[THREADS];
        pthread_t threads[THREADS];
        double lr[THREADS], average[THREADS][3];
        for (int i = 0; i < THREADS; i++) {
            walks[i] = (struct walk){.opt = opt_create(specs[k])};
            CHECK(opt_bind(walks[i].opt, "w", "float64", 3, walks[i].w, walks[i].dw) == OPT_OK);
            CHECK(opt_step(walks[i].opt) == OPT_OK);
            CHECK(opt_schedule(walks[i].opt, "StepLR(step_size=20, gamma=0.9)") == OPT_OK);
            CHECK(opt_average(walks[i].opt, "AveragedModel()") == OPT_OK);
        }
        go_round(&walks[0]);
        CHECK(strstr(opt_describe(walks[0].opt), "schedulers: stepped without Python\n"));
        CHECK(strstr(opt_describe(walks[0].opt), "gradients: zeroed and clipped without Python\n"));
        for (int i = 1; i < THREADS; i++)
            CHECK(pthread_create(&threads[i], NULL, go_round, &walks[i]) == 0);
        for (int i = 1; i < THREADS; i++)
            CHECK(pthread_join(threads[i], NULL) == 0);
        for (int i = 0; i < THREADS; i++) {
            CHECK(opt_get(walks[i].opt, 0, "lr", &lr[i]) == OPT_OK && lr[i] == lr[0] && lr[0] < 0.5);
            CHECK(opt_average_get(walks[i].opt, "w", average[i]) == OPT_OK);
            CHECK(memcmp(average[i], average[0], sizeof average[0]) == 0);
            CHECK(memcmp(walks[i].w, walks[0].w, sizeof walks[0].w) == 0);
            CHECK(opt_free(walks[i].opt) == OPT_OK);
        }
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
    whole_loops_need_no_gil();
    schedulers_are_content();
    plans_end_with_their_handles();
    CHECK(strstr(opt_describe(0), "plans: True\n"));
    check_was_quiet(output);
    return 0;
}
