/* Steps that evaluate the loss themselves: with a closure and by reverse communication. */
#include <fenv.h>
#include <math.h>

#include "check.h"

enum { N = 6 };

struct problem {
    int opt, calls, fail_at;
    double w[N], dw[N];
};

/* The Rosenbrock function in N dimensions. */
static double loss_and_gradient(struct problem *p)
{
    double loss = 0;
    memset(p->dw, 0, sizeof p->dw);
    for (int i = 0; i + 1 < N; i++) {
        double a = 1 - p->w[i], b = p->w[i + 1] - p->w[i] * p->w[i];
        loss += a * a + 100 * b * b;
        p->dw[i] += -2 * a - 400 * p->w[i] * b;
        p->dw[i + 1] += 200 * b;
    }
    return loss;
}

static int closure(void *user, double *value)
{
    struct problem *p = user;
    CHECK(fegetround() == FE_UPWARD); /* the host's own arithmetic */
    if (++p->calls == p->fail_at)
        return -1234;
    fesetround(FE_TONEAREST);
    *value = loss_and_gradient(p);
    fesetround(FE_UPWARD);
    return 0;
}

/* All of w as one parameter, or each half as one. */
static void start_in(struct problem *p, const char *spec, int parts)
{
    memset(p, 0, sizeof *p);
    for (int i = 0; i < N; i++)
        p->w[i] = i % 2 ? 1 : -1;
    p->opt = opt_create(spec);
    CHECK(p->opt > 0);
    for (int i = 0; i < parts; i++) {
        int first = i * N / parts;
        CHECK(opt_bind(p->opt, i ? "v" : "w", "float64", N / parts, p->w + first, p->dw + first) == OPT_OK);
    }
}

static void start(struct problem *p, const char *spec) { start_in(p, spec, 1); }

static const char *const specs[] = {
    "LBFGS(lr=0.1)",
    "LBFGS(line_search_fn='strong_wolfe')",
    "LBFGS(max_iter=1, lr=0.01)",
    "Adam(lr=0.1)",
    "SGD(lr=0.0001)",
    "RMSprop(lr=0.1)",
};
enum { SPECS = sizeof specs / sizeof *specs, STEPS = 30 };

static void lbfgs_finds_the_minimum(void)
{
    struct problem p;
    double loss = 0;
    start(&p, specs[1]);
    fesetround(FE_UPWARD);
    for (int i = 0; i < 20; i++)
        CHECK(opt_step_closure(p.opt, closure, &p, &loss) == OPT_OK);
    fesetround(FE_TONEAREST);
    for (int i = 0; i < N; i++)
        CHECK(fabs(p.w[i] - 1) < 1e-4);
    CHECK(loss < 1e-8 && p.calls > 20);
    CHECK(opt_free(p.opt) == OPT_OK);
}

static void both_ways_have_the_same_numbers(void)
{
    for (int s = 0; s < SPECS; s++) {
        struct problem p, q;
        double first = 0, loss = 0;
        start(&p, specs[s]);
        start(&q, specs[s]);
        for (int i = 0; i < STEPS; i++) {
            fesetround(FE_UPWARD);
            CHECK(opt_step_closure(p.opt, closure, &p, &first) == OPT_OK);
            fesetround(FE_TONEAREST);
            int status, calls = 0;
            double first_here = 0;
            while ((status = opt_iterate(q.opt, loss)) == OPT_EVALUATE) {
                loss = loss_and_gradient(&q);
                first_here = calls++ ? first_here : loss;
            }
            CHECK(status == OPT_DONE);
            CHECK(first == first_here);
            CHECK(memcmp(p.w, q.w, sizeof p.w) == 0);
        }
        CHECK(opt_free(p.opt) == OPT_OK);
        CHECK(opt_free(q.opt) == OPT_OK);
    }
}

static void a_closure_that_fails_undoes_the_step(void)
{
    for (int s = 0; s < SPECS; s++)
        for (int fail_at = 1; fail_at < (s < 2 ? 9 : 2); fail_at++) {
            struct problem p, q;
            start_in(&p, specs[s], 1 + fail_at % 2);
            start_in(&q, specs[s], 1 + fail_at % 2);
            fesetround(FE_UPWARD);
            for (int i = 0; i < 5; i++) {
                CHECK(opt_step_closure(p.opt, closure, &p, NULL) == OPT_OK);
                CHECK(opt_step_closure(q.opt, closure, &q, NULL) == OPT_OK);
                CHECK(memcmp(p.w, q.w, sizeof p.w) == 0);
                double loss = 5;
                p.fail_at = p.calls + fail_at;
                int status = opt_step_closure(p.opt, closure, &p, &loss);
                p.fail_at = 0;
                if (status == OPT_OK && i > 0) /* close to the minimum there are fewer calls */
                    CHECK(opt_step_closure(q.opt, closure, &q, &loss) == OPT_OK);
                else
                    CHECK_FAILS(-1234, "the host's closure failed with status -1234", status);
                CHECK((status == OPT_OK || loss == 5) && memcmp(p.w, q.w, sizeof p.w) == 0);
            }
            fesetround(FE_TONEAREST);
            CHECK(opt_free(p.opt) == OPT_OK);
            CHECK(opt_free(q.opt) == OPT_OK);
        }
}

static int answer; /* what a closure returns that sets nothing, or what it should not return */

static int forget(void *user, double *value)
{
    struct problem *p = user;
    (void)value;
    p->dw[0] = 1;
    return answer;
}

static int accumulate(void *user, double *value)
{
    *value += loss_and_gradient(user); /* to nothing */
    return 0;
}

static int set(void *user, double *value)
{
    *value = loss_and_gradient(user);
    return answer;
}

/* Sets a loss that is no number, which is not the same as none. */
static int diverge(void *user, double *value)
{
    loss_and_gradient(user);
    *value = NAN;
    return 0;
}

static void a_closure_that_sets_no_loss_or_returns_more_than_0_fails(void)
{
    for (int s = 0; s < SPECS; s++) {
        struct problem p;
        start(&p, specs[s]);
        for (int i = 0; i < 3; i++) {
            double before[N], loss = 5;
            memcpy(before, p.w, sizeof before);
            answer = 0;
            CHECK_FAILS(OPT_EINVAL, "returned 0 and did not set the loss",
                        opt_step_closure(p.opt, forget, &p, &loss));
            CHECK_FAILS(OPT_EINVAL, "returned 0 and did not set the loss",
                        opt_step_closure(p.opt, accumulate, &p, &loss));
            answer = 1 + i;
            char words[80];
            snprintf(words, sizeof words, "the host's closure returned %d, which is neither", answer);
            CHECK_FAILS(OPT_EINVAL, words, opt_step_closure(p.opt, forget, &p, &loss));
            CHECK_FAILS(OPT_EINVAL, words, opt_step_closure(p.opt, set, &p, &loss));
            CHECK(loss == 5 && memcmp(p.w, before, sizeof before) == 0);
            answer = 0;
            CHECK(opt_step_closure(p.opt, set, &p, &loss) == OPT_OK && loss != 5);
            CHECK(memcmp(p.w, before, sizeof before) != 0);
        }
        double loss = 0;
        CHECK(opt_step_closure(p.opt, diverge, &p, &loss) == OPT_OK && isnan(loss));
        CHECK(opt_free(p.opt) == OPT_OK);
    }
}

static int meddle(void *user, double *value)
{
    struct problem *p = user;
    *value = loss_and_gradient(p);
    CHECK_FAILS(OPT_ESTATE, "is in the middle of the step that called this function", opt_step(p->opt));
    CHECK_FAILS(OPT_ESTATE, "is in the middle", opt_free(p->opt));
    CHECK_FAILS(OPT_ESTATE, "is in the middle", opt_bind(p->opt, "w", "float64", N, p->w, p->dw));
    double lr = 0, norm = 0;
    CHECK(opt_get(p->opt, 0, "lr", &lr) == OPT_OK && lr == 1);
    CHECK(opt_clip_grad_norm(p->opt, 0.5, 2, 0, &norm) == OPT_OK && norm > 0.5);
    CHECK(opt_describe(p->opt) != NULL);
    double v[] = {1}, dv[] = {1};
    int other = opt_create("SGD(lr=1)");
    CHECK(other > 0 && opt_bind(other, "v", "float64", 1, v, dv) == OPT_OK);
    CHECK(opt_step(other) == OPT_OK && v[0] == 0 && opt_free(other) == OPT_OK);
    p->calls++;
    return 0;
}

static void a_closure_may_ask_and_clip_but_not_step(void)
{
    struct problem p;
    start(&p, "SGD(lr=1)");
    CHECK(opt_step_closure(p.opt, meddle, &p, NULL) == OPT_OK);
    double moved = 0;
    for (int i = 0; i < N; i++)
        moved += (p.w[i] - (i % 2 ? 1 : -1)) * (p.w[i] - (i % 2 ? 1 : -1));
    CHECK(p.calls == 1 && fabs(sqrt(moved) - 0.5) < 1e-5); /* the clipped norm */
    CHECK(opt_free(p.opt) == OPT_OK);
}

static void between_evaluations_only_asking_is_allowed(void)
{
    struct problem p;
    double lr = 0;
    start(&p, specs[0]);
    CHECK(opt_iterate(p.opt, 0) == OPT_EVALUATE);
    CHECK_FAILS(OPT_ESTATE, "call opt_iterate until it returns OPT_DONE", opt_step(p.opt));
    CHECK_FAILS(OPT_ESTATE, "opt_bind in the middle of a step",
                opt_bind(p.opt, "w", "float64", N, p.w, p.dw));
    CHECK(opt_get(p.opt, 0, "lr", &lr) == OPT_OK && lr == 0.1);
    double before[N];
    memcpy(before, p.w, sizeof before);
    CHECK(opt_iterate(p.opt, loss_and_gradient(&p)) == OPT_EVALUATE);
    CHECK(memcmp(p.w, before, sizeof before) != 0);
    CHECK(opt_free(p.opt) == OPT_OK); /* undoes the step */
    CHECK(memcmp(p.w, before, sizeof before) == 0);
}

int main(void)
{
    int quiet = check_quiet();
    struct problem p;
    lbfgs_finds_the_minimum();
    both_ways_have_the_same_numbers();
    a_closure_that_fails_undoes_the_step();
    a_closure_that_sets_no_loss_or_returns_more_than_0_fails();
    a_closure_may_ask_and_clip_but_not_step();
    between_evaluations_only_asking_is_allowed();
    start(&p, specs[0]);
    CHECK_FAILS(OPT_ESTATE, "call opt_step_closure or opt_iterate", opt_step(p.opt));
    CHECK_FAILS(OPT_EINVAL, "closure must not be NULL", opt_step_closure(p.opt, NULL, NULL, NULL));
    CHECK(opt_free(p.opt) == OPT_OK);
    int bare = opt_create("LBFGS()");
    CHECK_FAILS(OPT_ESTATE, "nothing is bound: call opt_bind before opt_iterate", opt_iterate(bare, 0));
    CHECK_FAILS(OPT_ESTATE, "before opt_step_closure", opt_step_closure(bare, closure, &p, NULL));
    check_was_quiet(quiet);
    return 0;
}
