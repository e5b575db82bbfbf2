/* Eight threads that make the first call at once, and then share optimizers. */
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

static void run(void *(*work)(void *))
{
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++)
        CHECK(pthread_create(&threads[i], NULL, work, NULL) == 0);
    for (int i = 0; i < THREADS; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
}

int main(void)
{
    run(race);
    double w[] = {0}, dw[] = {-1};
    shared = opt_create("SGD(lr=1)");
    CHECK(opt_bind(shared, "w", "float64", 1, w, dw) == OPT_OK);
    run(share);
    CHECK(w[0] == THREADS * STEPS); /* no step is lost */
    CHECK(opt_free(shared) == OPT_OK);
    return 0;
}
