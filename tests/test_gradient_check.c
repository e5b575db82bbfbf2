/* opt_check_gradient: right gradients pass, wrong ones are named for what they are, and nothing changes. */
#include <math.h>

#include "check.h"

enum { ROWS = 3, COLUMNS = 2, N = ROWS * COLUMNS };

/* What a closure does wrong. */
enum mistake {
    NONE,
    TWICE,
    HALF,
    NEGATIVE,
    ZERO,
    ADDED,
    TRANSPOSED,
    TURNED,
    ONE_WRONG,
    CHANGING,
    INFINITE,
    FAILING,
    THREE
};

static struct problem {
    int opt, calls;
    enum mistake mistake;
    double w[N], dw[N];
} p;

/* sum_i c_i (w_i - i)^4 / 4, whose gradient c_i (w_i - i)^3 differs in each value. */
static double loss_and_gradient(void)
{
    static const double times[] = {[TWICE] = 2, [HALF] = 0.5, [NEGATIVE] = -1, [ZERO] = 0, [THREE] = 3};
    double loss = 0, right[N];
    for (int i = 0; i < N; i++) {
        double c = 1 + 0.5 * i, d = p.w[i] - i;
        loss += c * d * d * d * d / 4;
        right[i] = c * d * d * d;
    }
    for (int i = 0; i < N; i++)
        switch (p.mistake) {
        case TWICE:
        case HALF:
        case NEGATIVE:
        case ZERO:
        case THREE:
            p.dw[i] = times[p.mistake] * right[i];
            break;
        case ADDED:
            p.dw[i] += right[i];
            break;
        case TRANSPOSED:
            p.dw[i] = right[i % COLUMNS * ROWS + i / COLUMNS];
            break;
        case TURNED:
            p.dw[i] = right[i % ROWS * COLUMNS + i / ROWS];
            break;
        case ONE_WRONG:
            p.dw[i] = i == 4 ? right[i] + 1 : right[i];
            break;
        default:
            p.dw[i] = right[i];
        }
    p.calls++;
    if (p.mistake == CHANGING)
        loss += p.calls;
    return p.mistake == INFINITE && p.calls == 3 ? INFINITY : loss;
}

static int closure(void *user, double *value)
{
    CHECK(user == &p);
    if (p.mistake == FAILING && p.calls == 5)
        return -1234;
    if (p.mistake == ADDED)
        CHECK(p.calls > 0 || opt_zero_grad(p.opt) == OPT_OK); /* which may be called from within */
    *value = loss_and_gradient();
    return 0;
}

static void start(const char *spec, enum mistake mistake)
{
    const int64_t shape[] = {ROWS, COLUMNS};
    memset(&p, 0, sizeof p);
    p.mistake = mistake;
    for (int i = 0; i < N; i++)
        p.w[i] = 1.5 + 0.25 * i * i, p.dw[i] = 7 + i;
    p.opt = opt_create(spec);
    CHECK(opt_bind_nd(p.opt, "w", "float64", "cpu", 2, shape, p.w, NULL, p.dw, NULL) == OPT_OK);
}

/* Check by a closure, or by reverse communication. */
static int check_gradient(int iterates, double *error)
{
    if (!iterates)
        return opt_check_gradient(p.opt, closure, &p, error);
    int status;
    double loss = 0;
    while ((status = opt_check_gradient_iterate(p.opt, loss, error)) == OPT_EVALUATE)
        loss = loss_and_gradient();
    return status;
}

static void a_right_gradient_passes(int iterates)
{
    double error = -1, w[N], dw[N];
    start("Adam(lr=0.1)", NONE);
    memcpy(w, p.w, sizeof w), memcpy(dw, p.dw, sizeof dw);
    CHECK(check_gradient(iterates, &error) == OPT_OK);
    CHECK(error > 0 && error < 1e-8);
    CHECK(p.calls == 2 + 4 * N);
    CHECK(memcmp(w, p.w, sizeof w) == 0 && memcmp(dw, p.dw, sizeof dw) == 0);
    CHECK(check_gradient(iterates, NULL) == OPT_OK);
    CHECK(opt_free(p.opt) == OPT_OK);
}

static void a_wrong_gradient_is_named(int iterates)
{
    static const struct {
        enum mistake mistake;
        const char *words;
    } cases[] = {
        {TWICE,
         "the gradient of parameter 'w' is twice the derivative of the loss: at [2, 1] the closure gives"},
        {HALF, "is half the derivative of the loss"},
        {NEGATIVE, "has the opposite sign of the derivative of the loss"},
        {THREE, "is 3 times the derivative of the loss"},
        {ZERO, "is zero everywhere"},
        {ADDED, "is added to the one that was there before"},
        {TRANSPOSED, "is right except for the order of its values"},
        {TURNED, "is right except for the order of its values"},
        {ONE_WRONG, "is not the derivative of the loss: at [2, 0] the closure gives"},
        {CHANGING, "at the same parameters: let it use the same random numbers"},
        {INFINITE, "the closure's loss is inf"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        if (iterates && cases[i].mistake == ADDED)
            continue; /* what it is added to is for the host to set to zero */
        double error = -1, w[N], dw[N];
        start("LBFGS()", cases[i].mistake);
        memcpy(w, p.w, sizeof w), memcpy(dw, p.dw, sizeof dw);
        CHECK_FAILS(OPT_EINVAL, cases[i].words, check_gradient(iterates, &error));
        CHECK(error == -1);
        CHECK(memcmp(w, p.w, sizeof w) == 0 && memcmp(dw, p.dw, sizeof dw) == 0);
        CHECK(opt_free(p.opt) == OPT_OK);
    }
}

/* Steps before and after it are those of an optimizer that was never checked. */
static void steps_go_on_as_without_it(int iterates)
{
    double w[2][N];
    for (int checks = 0; checks < 2; checks++) {
        start("RMSprop(lr=0.1, momentum=0.9)", NONE);
        for (int i = 0; i < 12; i++) {
            loss_and_gradient();
            CHECK(opt_step(p.opt) == OPT_OK);
            if (checks && i % 4 == 1)
                CHECK(check_gradient(iterates, NULL) == OPT_OK);
        }
        memcpy(w[checks], p.w, sizeof p.w);
        CHECK(opt_free(p.opt) == OPT_OK);
    }
    CHECK(memcmp(w[0], w[1], sizeof *w) == 0);
}

static void what_is_between_or_missing_is_refused(void)
{
    start("SGD(lr=0.5)", FAILING);
    double w[N];
    memcpy(w, p.w, sizeof w);
    CHECK(opt_check_gradient(p.opt, closure, &p, NULL) == -1234);
    CHECK(memcmp(w, p.w, sizeof w) == 0);
    CHECK_FAILS(OPT_EINVAL, "closure must not be NULL", opt_check_gradient(p.opt, NULL, &p, NULL));
    CHECK_FAILS(OPT_EHANDLE, "is not an optimizer", opt_check_gradient(-7, closure, &p, NULL));
    CHECK_FAILS(OPT_EHANDLE, "is not an optimizer", opt_check_gradient_iterate(-7, 0, NULL));

    p.mistake = NONE;
    for (int i = 0; i < 4; i++)
        CHECK(opt_check_gradient_iterate(p.opt, i ? loss_and_gradient() : 0, NULL) == OPT_EVALUATE);
    CHECK_FAILS(OPT_ESTATE, "call opt_check_gradient_iterate until it returns OPT_DONE", opt_step(p.opt));
    CHECK_FAILS(OPT_ESTATE, "call opt_check_gradient_iterate until", opt_iterate(p.opt, 0));
    CHECK(memcmp(w, p.w, sizeof w) != 0);
    CHECK(opt_free(p.opt) == OPT_OK); /* which ends it */
    CHECK(memcmp(w, p.w, sizeof w) == 0);

    start("SGD(lr=0.5)", NONE);
    CHECK(opt_iterate(p.opt, 0) == OPT_EVALUATE);
    CHECK_FAILS(OPT_ESTATE, "call opt_iterate until", opt_check_gradient_iterate(p.opt, 0, NULL));
    CHECK(opt_free(p.opt) == OPT_OK);

    int opt = opt_create("SGD(lr=0.5)");
    CHECK_FAILS(OPT_ESTATE, "nothing is bound", opt_check_gradient(opt, closure, &p, NULL));
    CHECK(opt_bind(opt, "w", "float64", 2, NULL, NULL) == OPT_OK);
    CHECK_FAILS(OPT_ESTATE, "has arrays only during", opt_check_gradient(opt, closure, &p, NULL));
    CHECK(opt_free(opt) == OPT_OK);
}

/* ---- other kinds of parameters ---- */

static float table[8][2], rows[3][2];
static int64_t indices[3], row_count;
static double complex_w[4], complex_dw[4];

static int float_closure(void *user, double *value)
{
    /* sum (t - 1)^2 over rows 5, 2 and 5 again, and |z - (1 + 2i)|^2 */
    static const int64_t used[] = {5, 2, 5};
    double factor = *(double *)user;
    *value = 0;
    row_count = 3;
    for (int i = 0; i < 3; i++) {
        indices[i] = used[i];
        for (int j = 0; j < 2; j++) {
            float d = table[used[i]][j] - 1;
            *value += d * d;
            rows[i][j] = (float)factor * 2 * d;
        }
    }
    for (int i = 0; i < 4; i++) {
        double d = complex_w[i] - (i % 2 ? 2 : 1);
        *value += d * d;
        complex_dw[i] = 2 * d;
    }
    return 0;
}

static void other_kinds_are_checked(void)
{
    int opt = opt_create("SGD(lr=0.5)");
    double factor = 1, error;
    CHECK(opt_bind_sparse(opt, "table", "float32", 8, 2, table, 3, &row_count, indices, rows) == OPT_OK);
    CHECK(opt_check_gradient(opt, float_closure, &factor, &error) == OPT_OK && error < 1e-2);
    factor = 2;
    CHECK_FAILS(OPT_EINVAL, "'table' is twice", opt_check_gradient(opt, float_closure, &factor, NULL));
    CHECK(opt_free(opt) == OPT_OK);
    opt = opt_create("SGD(lr=0.5)");
    CHECK(opt_bind(opt, "z", "complex128", 2, complex_w, complex_dw) == OPT_OK);
    CHECK(opt_check_gradient(opt, float_closure, &factor, &error) == OPT_OK && error < 1e-8);
    CHECK(opt_free(opt) == OPT_OK);
}

int main(void)
{
    int quiet = check_quiet();
    for (int iterates = 0; iterates < 2; iterates++) {
        a_right_gradient_passes(iterates);
        a_wrong_gradient_is_named(iterates);
        steps_go_on_as_without_it(iterates);
    }
    what_is_between_or_missing_is_refused();
    other_kinds_are_checked();
    check_was_quiet(quiet);
    return 0;
}
