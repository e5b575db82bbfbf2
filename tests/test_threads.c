/* Eight threads with small stacks that make the first call at once, and then share optimizers. */
#include <pthread.h>

#include "check.h"

enum { THREADS = 8, STEPS = 200 };

static int shared;

/* A barrier: macOS has none. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t all_here = PTHREAD_COND_INITIALIZER;
static int waiting;

static void wait_for_all(void)
{
    pthread_mutex_lock(&lock);
    if (++waiting % THREADS == 0)
        pthread_cond_broadcast(&all_here);
    else
        for (int round = waiting / THREADS; waiting / THREADS == round;)
            pthread_cond_wait(&all_here, &lock);
    pthread_mutex_unlock(&lock);
}

static void *race(void *unused)
{
    wait_for_all();
    check_one_step();
    CHECK_FAILS(OPT_EINVAL, "'Adm'", opt_create("Adm()")); /* each thread has its own error */
    return unused;
}

static void *share(void *unused)
{
    wait_for_all();
    for (int i = 0; i < STEPS; i++)
        CHECK(opt_step(shared) == OPT_OK);
    CHECK(strcmp(opt_error(), "") == 0);
    return unused;
}

static int loss(void *user, double *value)
{
    (void)user;
    *value = 1;
    return 0;
}

static void *step_in_every_way(void *unused)
{
    const char *const specs[] = {"Adam()", "RMSprop()", "Muon()", "LBFGS()"};
    for (int i = 0; i < 4; i++) {
        const int64_t shape[] = {8, 8};
        double w[64] = {0}, dw[64];
        for (int j = 0; j < 64; j++)
            dw[j] = j % 5 - 2;
        int opt = opt_create(specs[i]);
        CHECK(opt > 0 && opt_bind_nd(opt, "w", "float64", "cpu", 2, shape, w, NULL, dw, NULL) == OPT_OK);
        CHECK(opt_schedule(opt, "SequentialLR([ConstantLR(), CosineAnnealingLR(9)], milestones=[1])") ==
              OPT_OK);
        for (int n = 0; n < 3; n++) {
            CHECK(opt_step_closure(opt, loss, NULL, NULL) == OPT_OK);
            CHECK(i == 3 || opt_step(opt) == OPT_OK);
            CHECK(opt_schedule_step(opt) == OPT_OK);
        }
        while (opt_iterate(opt, 1) == OPT_EVALUATE)
            ;
        CHECK(strstr(opt_describe(opt), "parameter 'w'") && w[0] != 0);
        CHECK(opt_free(opt) == OPT_OK);
    }
    return unused;
}

static void run(void *(*work)(void *))
{
    pthread_t threads[THREADS];
    pthread_attr_t small;
    CHECK(pthread_attr_init(&small) == 0 && pthread_attr_setstacksize(&small, 256 * 1024) == 0);
    for (int i = 0; i < THREADS; i++)
        CHECK(pthread_create(&threads[i], &small, work, NULL) == 0);
    for (int i = 0; i < THREADS; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
}

int main(void)
{
    run(race);
    run(step_in_every_way);
    double w[] = {0}, dw[] = {-1};
    shared = opt_create("SGD(lr=1)");
    CHECK(opt_bind(shared, "w", "float64", 1, w, dw) == OPT_OK);
    run(share);
    CHECK(w[0] == THREADS * STEPS); /* no step is lost */
    CHECK(opt_free(shared) == OPT_OK);
    return 0;
}
