/* A host whose signal handlers run, Ctrl-C's among them, in the middle of our calls: they are the host's,
 * the calls go on, and the numbers are the same. */
#define _GNU_SOURCE
#include <signal.h>
#include <sys/time.h>
#include <sys/wait.h>

#include "check.h"

enum { SIZE = 1000, STEPS = 100 };

static volatile sig_atomic_t interrupts, ticks;

/* Ctrl-C at each tenth tick. */
static void tick(int signal)
{
    (void)signal;
    if (++ticks % 10 == 0)
        raise(SIGINT);
}

static void count(int signal)
{
    (void)signal;
    interrupts++;
}

/* Let a signal come every so many microseconds, 0 for never. */
static void set_timer(int microseconds)
{
    struct timeval every = {0, microseconds};
    CHECK(setitimer(ITIMER_REAL, &(struct itimerval){every, every}, NULL) == 0);
}

static int loss(void *w, double *value)
{
    *value = ((double *)w)[0];
    return 0;
}

static void run(const char *spec, double w[SIZE])
{
    static double dw[SIZE];
    int opt = opt_create(spec), is_lbfgs = strncmp(spec, "LBFGS", 5) == 0;
    CHECK(opt > 0);
    for (int i = 0; i < SIZE; i++)
        w[i] = 1 + i % 7, dw[i] = 0.1 * (i % 11);
    CHECK(opt_bind(opt, "w", "float64", SIZE, w, dw) == OPT_OK);
    CHECK(is_lbfgs || opt_schedule(opt, "StepLR(50)") == OPT_OK);
    for (int i = 0; i < STEPS; i++) {
        CHECK((is_lbfgs ? opt_step_closure(opt, loss, w, NULL) : opt_step(opt)) == OPT_OK);
        CHECK(is_lbfgs || opt_schedule_step(opt) == OPT_OK);
        CHECK_FAILS(OPT_EINVAL, "'Adm'", opt_create("Adm()"));
    }
    CHECK(opt_free(opt) == OPT_OK);
}

static void calls_go_on(void)
{
    static double calm[SIZE], disturbed[SIZE];
    const char *const specs[] = {"Adam()", "RMSprop()", "LBFGS(lr=1e-3)"};
    set_timer(2000);
    CHECK(opt_init(NULL) == OPT_OK); /* the import of torch, too */
    set_timer(0);
    CHECK(ticks > 10);
    for (int i = 0; i < 3; i++) {
        run(specs[i], calm);
        interrupts = 0;
        set_timer(100);
        run(specs[i], disturbed);
        set_timer(0);
        CHECK(interrupts > 0);
        CHECK(memcmp(calm, disturbed, sizeof calm) == 0);
    }
}

/* Where the host leaves it at that, Ctrl-C ends it, and nothing is printed. */
static void a_host_without_a_handler_ends(void)
{
    int files[2];
    CHECK(pipe(files) == 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        static double w[SIZE];
        dup2(files[1], STDOUT_FILENO), dup2(files[1], STDERR_FILENO);
        signal(SIGINT, SIG_DFL);
        for (;;) {
            run("RMSprop()", w);
            CHECK(write(files[1], "", 1) == 1); /* a run is through: now */
        }
    }
    char text[64];
    CHECK(read(files[0], text, 1) == 1);
    usleep(10000);
    CHECK(kill(child, SIGINT) == 0);
    int status;
    CHECK(waitpid(child, &status, 0) == child && WIFSIGNALED(status) && WTERMSIG(status) == SIGINT);
    close(files[1]);
    for (ssize_t n; (n = read(files[0], text, sizeof text)) > 0;)
        for (ssize_t i = 0; i < n; i++)
            CHECK(text[i] == '\0');
}

int main(void)
{
    CHECK(sigaction(SIGALRM, &(struct sigaction){.sa_handler = tick}, NULL) == 0); /* no SA_RESTART */
    CHECK(sigaction(SIGINT, &(struct sigaction){.sa_handler = count}, NULL) == 0);
    calls_go_on();
    a_host_without_a_handler_ends();
    return 0;
}
