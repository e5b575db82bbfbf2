/* A host that was started without stdin, stdout and stderr: what it opens itself gets their numbers, and
 * nothing of ours may end up there. */
#define _GNU_SOURCE
#include <sys/stat.h>

#include "check.h"

static double w[2], dw[2];

static int fail_in_closure(void *user, double *value)
{
    (void)user, (void)value;
    return -1;
}

static void make_calls(void)
{
    check_one_step();
    CHECK_FAILS(OPT_EINVAL, "did you mean Adam", opt_create("Adm()"));
    int opt = opt_create("LBFGS()");
    CHECK(opt > 0 && opt_bind(opt, "w", "float64", 2, w, dw) == OPT_OK);
    CHECK_FAILS(-1, "closure failed", opt_step_closure(opt, fail_in_closure, NULL, NULL));
    CHECK_FAILS(OPT_EINVAL, "'StepL'", opt_schedule(opt, "StepL(3)"));
    CHECK(opt_free(opt) == OPT_OK);
    opt = opt_create("SGD()");
    CHECK(opt > 0 && opt_bind(opt, "w", "float64", 2, w, dw) == OPT_OK);
    CHECK(opt_schedule(opt, "StepLR(3)") == OPT_OK && opt_schedule_step(opt) == OPT_OK);
    CHECK(opt_warning()[0] != '\0'); /* of a schedule that steps before the optimizer */
    CHECK(opt_free(opt) == OPT_OK);
}

int main(void)
{
    int log = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 100);
    check_log = fdopen(log, "w");
    for (int i = 0; i < 3; i++)
        close(i);
    make_calls();
    for (int i = 0; i < 3; i++)
        CHECK(fcntl(i, F_GETFD) < 0); /* nor does anything of ours stay there */
    for (int i = 0; i < 3; i++) {
        char path[] = "/tmp/optplug-closed-XXXXXX";
        CHECK(mkstemp(path) == i && unlink(path) == 0);
    }
    make_calls();
    for (int i = 0; i < 3; i++) {
        struct stat file;
        CHECK(fstat(i, &file) == 0 && file.st_size == 0);
    }
    return 0;
}
