/* main returns while another thread steps: no crash, and what comes after is an error. */
#include <pthread.h>

#include "check.h"

enum { MANY = 1 << 18 };

static float w[MANY], dw[MANY];
static int opt;
static volatile int steps;

static void *step_for_ever(void *unused)
{
    while (opt_step(opt) == OPT_OK)
        steps++;
    return unused;
}

static void step_late(void)
{
    CHECK_FAILS(OPT_ESTATE, "Python has ended in this process", opt_step(opt));
    CHECK_FAILS(OPT_ESTATE, "Python has ended in this process", opt_create("SGD()"));
}

int main(void)
{
    pthread_t thread;
    atexit(step_late); /* registered before optplug's own, so run after it */
    opt = opt_create("Adam(lr=0.5)");
    CHECK(opt > 0 && opt_bind(opt, "w", "float32", MANY, w, dw) == OPT_OK);
    CHECK(pthread_create(&thread, NULL, step_for_ever, NULL) == 0);
    while (steps < 20)
        usleep(1000);
    return 0;
}
