/* A child of fork() steps, though OpenMP's workers did not come along. */
#include <sys/wait.h>

#include "check.h"

enum { MANY = 1 << 20 };

static float w[MANY], dw[MANY];

int main(void)
{
    for (int i = 0; i < MANY; i++)
        dw[i] = 1;
    int opt = opt_create("Adam(lr=0.5)");
    CHECK(opt > 0 && opt_bind(opt, "w", "float32", MANY, w, dw) == OPT_OK);
    CHECK(opt_step(opt) == OPT_OK);
    float stepped = w[0];
    int begun = opt_create("SGD(lr=1)");
    CHECK(opt_bind(begun, "w", "float32", MANY, w, dw) == OPT_OK && opt_iterate(begun, 0) == OPT_EVALUATE);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        alarm(30); /* it would hang */
        CHECK(opt_step(opt) == OPT_OK);
        CHECK(w[0] < stepped && w[MANY - 1] == w[0]);
        int fresh = opt_create("SGD(lr=1)");
        CHECK(fresh > 0 && opt_bind(fresh, "w", "float32", MANY, w, dw) == OPT_OK);
        CHECK_FAILS(OPT_ESTATE, "is the parent process's", opt_iterate(begun, 0));
        CHECK(opt_free(begun) == OPT_OK);
        CHECK(opt_step(fresh) == OPT_OK && opt_free(fresh) == OPT_OK);
        _exit(0);
    }
    int status = -1;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    CHECK(w[0] == stepped);
    CHECK(opt_iterate(begun, 1) == OPT_DONE && w[0] == stepped - 1 && opt_free(begun) == OPT_OK);
    stepped = w[0];
    CHECK(opt_step(opt) == OPT_OK && w[0] < stepped);
    return 0;
}
