/* A child of fork() steps, though OpenMP's workers did not come along, nor the threads that were in the
 * middle of a call; what it cannot have is an error, and it never hangs. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/wait.h>

#include "check.h"

enum { MANY = 1 << 20, FORKS = 8, BUSY = 4, LOST = 77 };

static float w[MANY], dw[MANY];

/* Fork; true in the child, which is ended if it hangs. */
static int in_child(pid_t *child)
{
    *child = fork();
    CHECK(*child >= 0);
    if (*child == 0)
        alarm(600);
    return *child == 0;
}

static void check_child(pid_t child)
{
    int status = -1;
    CHECK(waitpid(child, &status, 0) == child);
    if (WIFSIGNALED(status))
        fprintf(stderr, "the child was ended by signal %d\n", WTERMSIG(status));
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void *start(void *unused)
{
    CHECK(opt_init(NULL) == OPT_OK);
    return unused;
}

static int python_runs(void)
{
    int (*is_initialized)(void);
    *(void **)&is_initialized = dlsym(RTLD_DEFAULT, "Py_IsInitialized");
    return is_initialized && is_initialized();
}

/* When Python runs, the import of torch takes another second or two: a child that is born in it has half. */
static void fork_while_another_thread_starts_python(void)
{
    pid_t child;
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, start, NULL) == 0);
    while (!python_runs())
        usleep(1000);
    if (in_child(&child)) {
        CHECK_FAILS(OPT_ESTART, "forked while another thread was starting Python", opt_create("SGD()"));
        CHECK_FAILS(OPT_ESTART, "forked while another thread was starting Python", opt_init(NULL));
        _exit(0);
    }
    CHECK(pthread_join(thread, NULL) == 0);
    check_child(child);
}

static void state_is_the_childs_own(void)
{
    for (int i = 0; i < MANY; i++)
        dw[i] = 1;
    int opt = opt_create("Adam(lr=0.5)");
    CHECK(opt > 0 && opt_bind(opt, "w", "float32", MANY, w, dw) == OPT_OK);
    CHECK(opt_step(opt) == OPT_OK);
    float stepped = w[0];
    int begun = opt_create("SGD(lr=1)");
    CHECK(opt_bind(begun, "w", "float32", MANY, w, dw) == OPT_OK && opt_iterate(begun, 0) == OPT_EVALUATE);
    pid_t child;
    if (in_child(&child)) {
        CHECK(opt_step(opt) == OPT_OK);
        CHECK(w[0] < stepped && w[MANY - 1] == w[0]);
        int fresh = opt_create("SGD(lr=1)");
        CHECK(fresh > 0 && opt_bind(fresh, "w", "float32", MANY, w, dw) == OPT_OK);
        CHECK_FAILS(OPT_ESTATE, "was begun in the parent process", opt_iterate(begun, 0));
        CHECK(opt_free(begun) == OPT_OK);
        CHECK(opt_step(fresh) == OPT_OK && opt_free(fresh) == OPT_OK);
        _exit(0);
    }
    check_child(child);
    CHECK(w[0] == stepped);
    CHECK(opt_iterate(begun, 1) == OPT_DONE && w[0] == stepped - 1 && opt_free(begun) == OPT_OK);
    stepped = w[0];
    CHECK(opt_step(opt) == OPT_OK && w[0] < stepped);
    CHECK(opt_free(opt) == OPT_OK);
}

static const char *const specs[BUSY] = {"Adam()", "RMSprop()", "SGD(momentum=0.9)", "Adam(fused=False)"};
static double v[BUSY][100], dv[BUSY][100];
static int busy[BUSY];
static _Atomic int done, resting;

static void *be_busy(void *of)
{
    int *opt = of;
    while (!done) {
        if (resting) {
            usleep(1000);
            continue;
        }
        CHECK(opt_step(*opt) == OPT_OK);
        if (opt == &busy[3]) { /* whose handle may be any generation's then */
            int other = opt_create("SGD()");
            CHECK(other > 0 && opt_free(other) == OPT_OK);
        }
    }
    return NULL;
}

static void fork_while_other_threads_step(void)
{
    static double u[100], du[100];
    const char *const mine[] = {"Adam()", "RMSprop()"};
    pthread_t threads[BUSY];
    int opt[2], lost = 0;
    for (int i = 0; i < 2; i++) {
        opt[i] = opt_create(mine[i]);
        CHECK(opt[i] > 0 && opt_bind(opt[i], "u", "float64", 100, u, du) == OPT_OK);
        CHECK(opt_step(opt[i]) == OPT_OK);
    }
    for (int i = 0; i < BUSY; i++) {
        busy[i] = opt_create(specs[i]);
        CHECK(busy[i] > 0 && opt_bind(busy[i], "v", "float64", 100, v[i], dv[i]) == OPT_OK);
        CHECK(pthread_create(&threads[i], NULL, be_busy, &busy[i]) == 0);
    }
    for (int n = 0; n < FORKS; n++) {
        pid_t child;
        if (in_child(&child)) {
            for (int i = 0; i < 2; i++)
                CHECK(opt_step(opt[i]) == OPT_OK && opt_step(opt[i]) == OPT_OK);
            check_one_step();
            int status = 0;
            for (int i = 0; i < BUSY; i++)
                if (opt_step(busy[i]) != OPT_OK) {
                    status = LOST;
                    CHECK_FAILS(OPT_ESTATE, "was in use by another thread when", opt_step(busy[i]));
                    CHECK_FAILS(OPT_ESTATE, "create another here", opt_free(busy[i]));
                }
            exit(status); /* and what runs at exit runs */
        }
        resting = 1; /* or the child waits for a processor */
        int status = -1;
        CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status));
        resting = 0;
        CHECK(WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == LOST);
        lost += WEXITSTATUS(status) == LOST;
        CHECK(opt_step(opt[0]) == OPT_OK && opt_step(opt[1]) == OPT_OK);
    }
    CHECK(lost > 0); /* or this test has seen nothing */
    done = 1;
    for (int i = 0; i < BUSY; i++)
        CHECK(pthread_join(threads[i], NULL) == 0 && opt_free(busy[i]) == OPT_OK);
}

static int fork_inside(void *user, double *value)
{
    int *opt = user;
    pid_t child;
    *value = 1;
    if (in_child(&child)) {
        check_one_step();
        CHECK_FAILS(OPT_ESTATE, "in the middle of the step", opt_step(*opt));
        exit(0);
    }
    check_child(child);
    return 0;
}

static void fork_in_a_closure(void)
{
    int opt = opt_create("SGD(lr=1)");
    CHECK(opt_bind(opt, "w", "float32", MANY, w, dw) == OPT_OK);
    CHECK(opt_step_closure(opt, fork_inside, &opt, NULL) == OPT_OK && opt_free(opt) == OPT_OK);
}

static void children_of_children_step(void)
{
    pid_t child;
    if (in_child(&child)) {
        pid_t grandchild;
        check_one_step();
        if (in_child(&grandchild)) {
            check_one_step();
            exit(0);
        }
        check_child(grandchild);
        exit(0);
    }
    check_child(child);
}

int main(void)
{
    fork_while_another_thread_starts_python();
    state_is_the_childs_own();
    if (!CHECK_SANITIZED)
        fork_while_other_threads_step();
    fork_in_a_closure();
    children_of_children_step();
    return 0;
}
