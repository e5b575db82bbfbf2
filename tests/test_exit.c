/* main returns while other threads step: no crash and no hang, and what comes after is an error. */
#include <pthread.h>

#include "check.h"

enum { THREADS = 3, SIZE = 1 << 16 };

static float w[THREADS][SIZE], dw[THREADS][SIZE];
static int opt[THREADS];

static void *step_for_ever(void *of)
{
    for (;;)
        if (opt_step(*(int *)of) != OPT_OK) /* at the end, which waits for the thread that is stuck */
            usleep(1000);
    return NULL;
}

static int never_return(void *user, double *value)
{
    for (;;)
        usleep(1000);
    return user == value;
}

static void *wait_for_ever(void *unused)
{
    static double v[1], dv[1];
    int stuck = opt_create("SGD()");
    CHECK(opt_bind(stuck, "v", "float64", 1, v, dv) == OPT_OK);
    opt_step_closure(stuck, never_return, NULL, NULL);
    return unused;
}

static void step_late(void)
{
    CHECK_FAILS(OPT_ESTATE, "Python has ended in this process", opt_step(opt[0]));
    CHECK_FAILS(OPT_ESTATE, "Python has ended in this process", opt_create("SGD()"));
}

int main(void)
{
    pthread_t thread;
    alarm(600);        /* against a hang */
    atexit(step_late); /* registered before optplug's own, so run after it */
    for (int i = 0; i < THREADS; i++) {
        opt[i] = opt_create("Adam(lr=0.5)");
        CHECK(opt[i] > 0 && opt_bind(opt[i], "w", "float32", SIZE, w[i], dw[i]) == OPT_OK);
        CHECK(pthread_create(&thread, NULL, step_for_ever, &opt[i]) == 0);
    }
    CHECK(pthread_create(&thread, NULL, wait_for_ever, NULL) == 0);
    usleep(300000);
    return 0;
}
