/* The host is left as it was: its arithmetic, its locale, its signal handlers, its threads. */
#define _GNU_SOURCE
#include <errno.h>
#include <fenv.h>
#include <locale.h>
#include <signal.h>

#include "check.h"

#ifdef _OPENMP
#include <omp.h>
#endif

extern char **environ;

#ifdef __GLIBC__
static int traps(void) { return fegetexcept(); }
static void set_traps(void) { feenableexcept(FE_DIVBYZERO | FE_INVALID | FE_OVERFLOW); }
#else
static int traps(void) { return 0; }
static void set_traps(void) {}
#endif

static int threads(void)
{
#ifdef _OPENMP
    return omp_get_max_threads();
#else
    return 0;
#endif
}

struct state {
    int traps, rounding, threads;
    char locale[256], folder[4096];
    size_t variables; /* of the environment: how many, and the sum of their lengths */
    struct sigaction actions[65];
    sigset_t mask;
};

static struct state look(void)
{
    struct state now;
    memset(&now, 0, sizeof now);
    now.traps = traps();
    now.rounding = fegetround();
    now.threads = threads();
    snprintf(now.locale, sizeof now.locale, "%s", setlocale(LC_ALL, NULL));
    CHECK(getcwd(now.folder, sizeof now.folder) != NULL);
    for (char **variable = environ; *variable; variable++)
        now.variables += 1000003 + strlen(*variable);
    for (int i = 1; i < 65; i++)
        sigaction(i, NULL, &now.actions[i]);
    sigprocmask(SIG_SETMASK, NULL, &now.mask);
    return now;
}

static struct state before;

static int same(int result)
{
    int error_number = errno;
    struct state now = look();
    errno = 42;
    CHECK(error_number == 42);
    CHECK(now.traps == before.traps);
    CHECK(now.rounding == before.rounding);
    CHECK(now.threads == before.threads);
    CHECK(strcmp(now.locale, before.locale) == 0);
    CHECK(strcmp(now.folder, before.folder) == 0);
    CHECK(now.variables == before.variables);
    for (int i = 1; i < 65; i++) {
        CHECK(now.actions[i].sa_handler == before.actions[i].sa_handler);
        /* 0x04000000 is SA_RESTORER, which libc adds to what it is given. */
        CHECK(((now.actions[i].sa_flags ^ before.actions[i].sa_flags) & ~0x04000000) == 0);
    }
    CHECK(memcmp(&now.mask, &before.mask, sizeof now.mask) == 0);
    return result;
}

enum { MANY = 1 << 20 }; /* enough for torch to want several threads */
static float w[MANY], dw[MANY];

/* The host's rounding mode is its OpenMP workers' too, in which torch would compute. */
static void all_values_are_rounded_alike(void)
{
    for (int i = 0; i < MANY; i++)
        w[i] = 1, dw[i] = 0.3f;
    int opt = same(opt_create("SGD(lr=0.1)"));
    CHECK(opt > 0 && same(opt_bind(opt, "w", "float32", MANY, w, dw)) == OPT_OK);
    CHECK(same(opt_step(opt)) == OPT_OK && same(opt_free(opt)) == OPT_OK);
    for (int i = 0; i < MANY; i++)
        CHECK(w[i] == w[0]);
}

int main(void)
{
    setlocale(LC_ALL, "");
    fesetround(FE_UPWARD);
#ifdef _OPENMP
    omp_set_num_threads(3);
    int sum = 0;
#pragma omp parallel reduction(+ : sum)
    sum += 1;
    CHECK(sum == 3);
#endif
    before = look();
    errno = 42;
    CHECK(same(opt_init(NULL)) == OPT_OK);
    all_values_are_rounded_alike();
    memset(w, 0, sizeof w), memset(dw, 0, sizeof dw);
    set_traps();
#ifdef _OPENMP
#pragma omp parallel
    set_traps();
#endif
    before.traps = traps();

    int opt = same(opt_create("Adam(lr=0.1)"));
    CHECK(opt > 0);
    CHECK(same(opt_bind(opt, "w", "float32", MANY, w, dw)) == OPT_OK);
    CHECK(same(opt_step(opt)) == OPT_OK); /* 0 / (0 + eps), and Python's own arithmetic */
    for (int i = 0; i < MANY; i++)
        dw[i] = 1e30f; /* whose square is no float: an overflow in torch's workers */
    CHECK(same(opt_step(opt)) == OPT_OK);
    CHECK(same(opt_create("Adm()")) == OPT_EINVAL);
    CHECK(same(opt_step(7)) == OPT_EHANDLE);
    CHECK(same(opt_free(opt)) == OPT_OK);
    return 0;
}
