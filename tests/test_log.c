/* What the library does is told to a function of the host's: which lines, where, and what it may rely on. */
#include "check.h"

#include <errno.h>
#include <fenv.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/wait.h>
#include <time.h>

static char told[16384]; /* "1 line\n2 line\n" */
static int rounding, error_number, others_status;
static int asked; /* the optimizer that another thread asks meanwhile */

static void take(void *user, int level, const char *line)
{
    (void)user;
    size_t used = strlen(told);
    snprintf(told + used, sizeof told - used, "%d %s\n", level, line);
}

static int count(const char *words)
{
    int n = 0;
    for (const char *c = told; (c = strstr(c, words)); c++)
        n++;
    return n;
}

static int silence(int opt)
{
    told[0] = '\0';
    for (int i = 0; i < 100; i++)
        CHECK(opt_step(opt) == OPT_OK);
    return told[0] == '\0';
}

static void the_start_and_each_change_are_told(void)
{
    double w[] = {1, 2}, dw[] = {2, 4};
    CHECK(opt_log(take, NULL) == OPT_OK && told[0] == '\0');
    CHECK(opt_init(NULL) == OPT_OK);
    CHECK(count("1 Python: ") == 1 && count("1 found libpython") == 1 && count("1 started Python in ") == 1);
    CHECK(count("1 torch ") == 1 && count("1 imported PyTorch and optplug in ") == 1);
    int opt = opt_create("Adam(lr=0.5)");
    CHECK(opt_bind(opt, "w", "float64", 2, w, dw) == OPT_OK && opt_step(opt) == OPT_OK);
    CHECK(count("1 opt=") == 2 && count(": Adam(lr=0.5)\n") == 1 &&
          count("_fused_adam_ without Python\n") == 1);
    CHECK(silence(opt)); /* nothing is new */
    CHECK(opt_set(opt, 0, "lr=0.25") == OPT_OK && opt_step(opt) == OPT_OK && silence(opt));
    CHECK(opt_schedule(opt, "StepLR(2)") == OPT_OK && count(": scheduler StepLR(2)\n") == 1);
    CHECK(opt_schedule(opt, NULL) == OPT_OK && count(": no scheduler any more\n") == 1);
    CHECK(opt_average(opt, "AveragedModel()") == OPT_OK && count(": average AveragedModel()\n") == 1);
    CHECK(opt_step(opt) == OPT_OK && count("recorded AveragedModel without Python\n") == 1);
    CHECK(silence(opt));
    CHECK(opt_schedule(opt, "StepLR(\n3)") == OPT_OK && count(": scheduler StepLR( 3)\n") == 1);
    char saved[65536];
    int64_t size = opt_save_memory(opt, saved, sizeof saved);
    CHECK(size > 0 && count("bytes of memory\n") == 1);
    told[0] = '\0';
    CHECK(opt_load_memory(opt, saved, size) == OPT_OK && count("loaded from memory, step 303\n") == 1);
    CHECK(count(": scheduler StepLR( 3)\n") == 1 && count(": average AveragedModel()\n") == 1);
    CHECK(opt_free(opt) == OPT_OK);
}

static void a_level_is_chosen(void)
{
    told[0] = '\0';
    CHECK(strstr(opt_describe(0), "\nlog: info\n"));
    CHECK(opt_init("log='debug'") == OPT_OK && strstr(opt_describe(0), "\nlog: debug\n"));
    CHECK_FAILS(OPT_EINVAL, "did you mean Adam", opt_create("Adm()"));
    CHECK(count("2 status -1: spec 'Adm()'") == 1);
    CHECK_FAILS(OPT_EINVAL, "log must be 'info', 'debug' or False, got 'loud'", opt_init("log='loud'"));
    CHECK_FAILS(OPT_EINVAL, "log must be 'info', 'debug' or False, got True", opt_init("log=True"));
    CHECK(opt_init("log=False") == OPT_OK && strstr(opt_describe(0), "\nlog: False\n"));
    told[0] = '\0';
    CHECK(opt_free(opt_create("SGD(lr=0.5)")) == OPT_OK && told[0] == '\0');
    CHECK(opt_init("log='info'") == OPT_OK);
    CHECK(opt_log(NULL, NULL) == OPT_OK);
    told[0] = '\0';
    CHECK(opt_free(opt_create("SGD(lr=0.5)")) == OPT_OK && told[0] == '\0');
}

static void *ask(void *unused)
{
    double lr;
    (void)unused;
    others_status = opt_get(asked, 0, "lr", &lr);
    return NULL;
}

/* Another thread can call the very optimizer meanwhile. */
static void look_around(void *user, int level, const char *line)
{
    pthread_t thread;
    take(user, level, line);
    rounding = fegetround();
    error_number = errno;
    if (asked) {
        CHECK(pthread_create(&thread, NULL, ask, NULL) == 0);
        CHECK(pthread_join(thread, NULL) == 0);
    }
    errno = 0;
}

static int closure(void *user, double *value)
{
    double lr;
    strcat(told, "closure\n");
    CHECK(opt_get(*(int *)user, 0, "lr", &lr) == OPT_OK);
    *value = 1;
    return OPT_OK;
}

static void the_function_finds_the_host_as_it_is(void)
{
    double w[] = {1, 2}, dw[] = {2, 4};
    CHECK(opt_log(look_around, NULL) == OPT_OK);
    int opt = opt_create("SGD(lr=0.5)");
    CHECK(opt_bind(opt, "w", "float64", 2, w, dw) == OPT_OK);
    others_status = -1;
    asked = opt;
    fesetround(FE_UPWARD);
    errno = 42;
    CHECK(opt_schedule(opt, "StepLR(2)") == OPT_OK);
    CHECK(rounding == FE_UPWARD && error_number == 42 && errno == 42);
    fesetround(FE_TONEAREST);
    CHECK(others_status == OPT_OK);
    told[0] = '\0';
    CHECK(opt_step_closure(opt, closure, &opt, NULL) == OPT_OK);
    CHECK(strncmp(told, "closure\n1 opt=", 14) == 0); /* when the call ends */
    asked = 0;
    CHECK(opt_free(opt) == OPT_OK && opt_log(NULL, NULL) == OPT_OK);
}

static atomic_int begun, ended, status_inside;

static void take_long(void *user, int level, const char *line)
{
    const struct timespec a_while = {0, 300000000};
    (void)user, (void)level, (void)line;
    status_inside = opt_log(NULL, NULL);
    begun = 1;
    nanosleep(&a_while, NULL);
    ended = 1;
}

static void *create(void *unused)
{
    (void)unused;
    CHECK(opt_free(opt_create("SGD(lr=0.5)")) == OPT_OK);
    return NULL;
}

static void what_is_taken_off_is_called_no_more(void)
{
    const struct timespec millisecond = {0, 1000000};
    pthread_t thread;
    CHECK(opt_log(take_long, NULL) == OPT_OK);
    CHECK(pthread_create(&thread, NULL, create, NULL) == 0);
    while (!begun)
        nanosleep(&millisecond, NULL);
    CHECK(opt_log(NULL, NULL) == OPT_OK && ended);
    CHECK(pthread_join(thread, NULL) == 0);
    CHECK(status_inside == OPT_ESTATE);
}

/* Forks while it is being told something. */
static void fork_once(void *user, int level, const char *line)
{
    static int children;
    take(user, level, line);
    if (children++)
        return;
    pid_t child = fork();
    if (child == 0)
        return;
    int status = -1;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
}

static void a_child_goes_on(void)
{
    pid_t parent = getpid();
    CHECK(opt_log(fork_once, NULL) == OPT_OK);
    CHECK(opt_free(opt_create("SGD(lr=0.5)")) == OPT_OK);
    told[0] = '\0';
    CHECK(opt_log(take, NULL) == OPT_OK && opt_free(opt_create("SGD(lr=0.25)")) == OPT_OK);
    CHECK(count(": SGD(lr=0.25)\n") == 1);
    if (getpid() != parent)
        _exit(0);
}

int main(void)
{
    int quiet = check_quiet();
    the_start_and_each_change_are_told();
    a_level_is_chosen();
    the_function_finds_the_host_as_it_is();
    what_is_taken_off_is_called_no_more();
    a_child_goes_on();
    check_was_quiet(quiet);
    return 0;
}
