/* Functions of the host's that do not come back, or call us too deep: calls that follow say so, no lock is
 * held for ever, and Python goes on. */
#include <pthread.h>
#include <setjmp.h>

#include "check.h"

enum { N = 2 };
static const double start[N] = {-1, 1};

struct problem {
    int opt;
    double w[N], dw[N];
};

static double loss_and_gradient(struct problem *p)
{
    double a = 1 - p->w[0], b = p->w[1] - p->w[0] * p->w[0];
    p->dw[0] = -2 * a - 400 * p->w[0] * b;
    p->dw[1] = 200 * b;
    return a * a + 100 * b * b;
}

static int closure(void *user, double *value)
{
    *value = loss_and_gradient(user);
    return 0;
}

static void begin(struct problem *p, const char *spec)
{
    memcpy(p->w, start, sizeof start);
    p->opt = opt_create(spec);
    CHECK(p->opt > 0 && opt_bind(p->opt, "w", "float64", N, p->w, p->dw) == OPT_OK);
}

static void check_left(struct problem *p)
{
    double lr;
    CHECK_FAILS(OPT_ESTATE, "called a function of yours that was left by", opt_step(p->opt));
    CHECK_FAILS(OPT_ESTATE, "it can only be freed (opt_free)", opt_step_closure(p->opt, closure, p, NULL));
    CHECK_FAILS(OPT_ESTATE, "was left by", opt_get(p->opt, 0, "lr", &lr));
    CHECK_FAILS(OPT_ESTATE, "was left by", opt_iterate(p->opt, 0));
    CHECK(opt_free(p->opt) == OPT_OK);
    CHECK_FAILS(OPT_EHANDLE, "is not an optimizer", opt_free(p->opt));
}

/* Check that LBFGS finds the minimum, in the very steps of before. */
static void check_that_all_is_well(void)
{
    static double first[N];
    static int is_known;
    struct problem p;
    begin(&p, "LBFGS(line_search_fn='strong_wolfe')");
    for (int i = 0; i < 5; i++)
        CHECK(opt_step_closure(p.opt, closure, &p, NULL) == OPT_OK);
    if (!is_known++)
        memcpy(first, p.w, sizeof first);
    CHECK(memcmp(first, p.w, sizeof first) == 0);
    CHECK(opt_free(p.opt) == OPT_OK);
    check_one_step();
}

/* ---- by longjmp ---- */

static jmp_buf back;

static int jump(void *user, double *value)
{
    closure(user, value);
    longjmp(back, 1);
}

static void jump_out_of_a_step(struct problem *p)
{
    if (!setjmp(back)) {
        opt_step_closure(p->opt, jump, p, NULL);
        CHECK(!"reached");
    }
}

/* Call from far below, where the stack has other things on it by then. */
static void check_left_far_below(struct problem *p, int levels)
{
    volatile char room[1000];
    memset((char *)room, levels, sizeof room);
    if (levels > 0)
        check_left_far_below(p, levels - 1);
    else
        check_left(p);
    CHECK(room[0] == levels);
}

static void a_step_that_is_left_is_told_by_the_next_call(void)
{
    static const char *const specs[] = {"LBFGS()", "Adam()", "RMSprop()"};
    for (int i = 0; i < 60; i++) {
        struct problem p;
        begin(&p, specs[i % 3]);
        if (i % 2)
            CHECK(opt_step_closure(p.opt, closure, &p, NULL) == OPT_OK);
        jump_out_of_a_step(&p);
        if (i % 4 < 2)
            check_left(&p);
        else
            check_left_far_below(&p, 100);
    }
    check_that_all_is_well();
}

static void a_schedule_that_is_left_is_told_too(void)
{
    for (volatile int i = 0; i < 20; i++) {
        struct problem p;
        begin(&p, "SGD(lr=1)");
        if (!setjmp(back))
            opt_schedule_callback(p.opt, "LambdaLR()", jump, &p);
        check_left(&p);
    }
    check_that_all_is_well();
}

static void *jump_in_a_thread(void *user)
{
    jump_out_of_a_step(user);
    return NULL;
}

static void a_thread_that_has_left_a_step_and_ends_holds_no_lock(void)
{
    struct problem p;
    pthread_t thread;
    begin(&p, "LBFGS()");
    CHECK(pthread_create(&thread, NULL, jump_in_a_thread, &p) == 0 && pthread_join(thread, NULL) == 0);
    check_left(&p);
}

/* Leaves a step of another optimizer that it has begun itself, and goes on. */
static int jump_within(void *user, double *value)
{
    struct problem inner;
    begin(&inner, "LBFGS()");
    jump_out_of_a_step(&inner);
    check_left(&inner);
    return closure(user, value);
}

static void a_step_within_a_step_may_be_left_alone(void)
{
    struct problem p, q;
    begin(&p, "LBFGS()");
    begin(&q, "LBFGS()");
    for (int i = 0; i < 3; i++) {
        CHECK(opt_step_closure(p.opt, jump_within, &p, NULL) == OPT_OK);
        CHECK(opt_step_closure(q.opt, closure, &q, NULL) == OPT_OK);
        CHECK(memcmp(p.w, q.w, sizeof p.w) == 0);
    }
    CHECK(opt_free(p.opt) == OPT_OK && opt_free(q.opt) == OPT_OK);
    check_that_all_is_well();
}

/* ---- by the end of a thread ---- */

static int exit_thread(void *user, double *value)
{
    closure(user, value);
    pthread_exit(NULL);
}

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t change = PTHREAD_COND_INITIALIZER;
static int is_in_closure;

static int wait_to_be_cancelled(void *user, double *value)
{
    int state;
    closure(user, value);
    CHECK(pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, &state) == 0 && state == PTHREAD_CANCEL_ENABLE);
    pthread_mutex_lock(&lock);
    is_in_closure = 1;
    pthread_cond_signal(&change);
    pthread_mutex_unlock(&lock);
    for (;;)
        pause();
    return 0;
}

static opt_callback last_words;

static void *end_in_a_step(void *user)
{
    struct problem *p = user;
    opt_step_closure(p->opt, last_words, p, NULL);
    CHECK(!"reached");
    return NULL;
}

static void a_thread_that_ends_in_a_closure_holds_no_lock(void)
{
    for (int i = 0; i < 10; i++) {
        struct problem p;
        pthread_t thread;
        begin(&p, i % 3 ? "LBFGS()" : "Adam()");
        last_words = i % 2 ? exit_thread : wait_to_be_cancelled;
        is_in_closure = i % 2;
        CHECK(pthread_create(&thread, NULL, end_in_a_step, &p) == 0);
        pthread_mutex_lock(&lock);
        while (!is_in_closure)
            pthread_cond_wait(&change, &lock);
        pthread_mutex_unlock(&lock);
        if (i % 2 == 0)
            CHECK(pthread_cancel(thread) == 0);
        CHECK(pthread_join(thread, NULL) == 0);
        check_left(&p);
    }
    check_that_all_is_well();
}

static char path[] = "/tmp/optplug-left-XXXXXX";

static void *save_for_ever(void *of)
{
    for (;;)
        opt_save(*(int *)of, path);
    return NULL;
}

static void *create_for_ever(void *unused)
{
    for (;;)
        opt_free(opt_create("SGD(lr=1)"));
    return unused;
}

static void a_thread_that_is_cancelled_ends_its_call_first(void)
{
    struct problem p;
    begin(&p, "Adam()");
    loss_and_gradient(&p);
    int file = mkstemp(path);
    CHECK(file >= 0 && close(file) == 0);
    for (int i = 0; i < 20; i++) {
        pthread_t saves, creates;
        CHECK(pthread_create(&saves, NULL, save_for_ever, &p.opt) == 0);
        CHECK(pthread_create(&creates, NULL, create_for_ever, NULL) == 0);
        usleep(1000 * (20 + 7 * (unsigned)i));
        CHECK(pthread_cancel(saves) == 0 && pthread_cancel(creates) == 0);
        CHECK(pthread_join(saves, NULL) == 0 && pthread_join(creates, NULL) == 0);
        CHECK(opt_step(p.opt) == OPT_OK);
    }
    CHECK(opt_save(p.opt, path) == OPT_OK && opt_load(p.opt, path) == OPT_OK && unlink(path) == 0);
    CHECK(opt_free(p.opt) == OPT_OK);
}

static void a_host_that_forbids_to_be_cancelled_still_does(void)
{
    int state;
    CHECK(pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &state) == 0);
    check_one_step();
    CHECK(pthread_setcancelstate(state, &state) == 0 && state == PTHREAD_CANCEL_DISABLE);
    check_one_step();
    CHECK(pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, &state) == 0 && state == PTHREAD_CANCEL_ENABLE);
}

/* ---- functions within functions ---- */

static _Thread_local int depth, deepest;

/* Each of the calls may be the first one without room, since their frames differ. */
static int nest(void *user, double *value)
{
    (void)user;
    *value = 1;
    struct problem p;
    p.opt = opt_create("SGD()");
    int status = p.opt > 0 ? opt_bind(p.opt, "w", "float64", N, p.w, p.dw) : p.opt;
    if (status == OPT_OK) {
        depth++;
        status = opt_step_closure(p.opt, nest, NULL, NULL);
        depth--;
    }
    if (status == OPT_OK)
        status = opt_free(p.opt);
    if (status == OPT_OK)
        return 0;
    CHECK(status == OPT_ESTATE && strstr(opt_error(), "are nested too deeply"));
    deepest = depth > deepest ? depth : deepest;
    return 0;
}

static void *nest_in_a_thread(void *unused)
{
    nest(NULL, &(double){0});
    CHECK(deepest > 0);
    return unused;
}

static void functions_that_nest_too_deep_are_an_error(void)
{
    nest(NULL, &(double){0});
    CHECK(depth == 0 && deepest > 10);
    for (size_t size = 96 << 10; size < 2 << 20; size *= 2) {
        pthread_attr_t small;
        pthread_t thread;
        CHECK(pthread_attr_init(&small) == 0 && pthread_attr_setstacksize(&small, size) == 0);
        CHECK(pthread_create(&thread, &small, nest_in_a_thread, NULL) == 0);
        CHECK(pthread_join(thread, NULL) == 0);
    }
    check_that_all_is_well();
}

int main(void)
{
    alarm(600); /* what hangs ends here */
    int quiet = check_quiet();
    check_that_all_is_well();
    a_step_that_is_left_is_told_by_the_next_call();
    a_schedule_that_is_left_is_told_too();
    a_thread_that_has_left_a_step_and_ends_holds_no_lock();
    a_step_within_a_step_may_be_left_alone();
    a_thread_that_ends_in_a_closure_holds_no_lock();
    a_thread_that_is_cancelled_ends_its_call_first();
    a_host_that_forbids_to_be_cancelled_still_does();
    functions_that_nest_too_deep_are_an_error();
    check_was_quiet(quiet);
    return 0;
}
