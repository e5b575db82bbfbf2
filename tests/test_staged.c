/* Arrays that come with each step: the numbers are those of arrays that are bound. */
#include <math.h>

#include "check.h"

static const int64_t shape[] = {2, 3}, column_major[] = {1, 2}, gaps[] = {5, 1};

/* Step the same parameters, lent and bound, side by side. */
static void they_step_as_bound_arrays_do(const char *spec)
{
    double lent[9] = {1, 2, 3, 4, 5, 6, 7, 8, 9}, bound[9], grad[9] = {0};
    memcpy(bound, lent, sizeof bound);
    int a = opt_create(spec), b = opt_create(spec);
    CHECK(a > 0 &&
          opt_bind_nd(a, "m", "float64", "cpu", 2, shape, NULL, column_major, NULL, column_major) == 0);
    CHECK(b > 0 &&
          opt_bind_nd(b, "m", "float64", "cpu", 2, shape, bound, column_major, grad, column_major) == 0);
    CHECK(opt_group(a, "lr=0.5") == OPT_OK && opt_bind(a, "v", "float64", 3, NULL, NULL) == OPT_OK);
    CHECK(opt_group(b, "lr=0.5") == OPT_OK && opt_bind(b, "v", "float64", 3, bound + 6, grad + 6) == OPT_OK);
    CHECK(opt_average(a, "AveragedModel()") == OPT_OK && opt_average(b, "AveragedModel()") == OPT_OK);
    for (int step = 0; step < 6; step++) {
        double moved[9], its_grad[9]; /* at another place each time, as a host's temporaries are */
        memcpy(moved, lent, sizeof moved);
        for (int i = 0; i < 9; i++)
            its_grad[i] = grad[i] = i - 4 + step * lent[i];
        CHECK(opt_step_f64(a, moved, its_grad) == OPT_OK && opt_step(b) == OPT_OK);
        memcpy(lent, moved, sizeof lent);
        CHECK(memcmp(lent, bound, sizeof lent) == 0);
        CHECK(memcmp(its_grad, grad, sizeof grad) == 0);
        memset(moved, 0, sizeof moved);
    }
    double averages[2][3];
    CHECK(opt_average_get(a, "v", averages[0]) == OPT_OK && opt_average_get(b, "v", averages[1]) == OPT_OK);
    CHECK(memcmp(averages[0], averages[1], sizeof averages[0]) == 0);
    CHECK(opt_free(a) == OPT_OK && opt_free(b) == OPT_OK);
}

static void they_may_be_float32(void)
{
    float w[] = {1, 2}, dw[] = {2, 4};
    int opt = opt_create("SGD(lr=0.5)");
    CHECK(opt > 0 && opt_bind(opt, "w", "float32", 2, NULL, NULL) == OPT_OK);
    CHECK(opt_step_f32(opt, w, dw) == OPT_OK && w[0] == 0 && w[1] == 0 && dw[1] == 4);
    CHECK(opt_free(opt) == OPT_OK);
}

static void what_lies_in_gaps_stays(void)
{
    double w[8] = {1, 2, 3, -1, -2, 4, 5, 6}, dw[6] = {2, 2, 2, 4, 4, 4};
    int opt = opt_create("SGD(lr=0.5)");
    CHECK(opt > 0 && opt_bind_nd(opt, "w", "float64", "cpu", 2, shape, NULL, gaps, NULL, NULL) == OPT_OK);
    CHECK(opt_step_f64(opt, w, dw) == OPT_OK);
    const double expected[] = {0, 1, 2, -1, -2, 2, 3, 4};
    CHECK(memcmp(w, expected, sizeof w) == 0);
    CHECK(opt_free(opt) == OPT_OK);
}

static void a_parameter_changes_between_lent_and_bound(void)
{
    double w[] = {0}, dw[] = {1}, v[] = {0}, dv[] = {1};
    int64_t rows = 1, row[] = {0};
    int opt = opt_create("SGD(lr=1, momentum=0.5)");
    CHECK(opt > 0 && opt_bind(opt, "w", "float64", 1, NULL, NULL) == OPT_OK);
    CHECK(opt_step_f64(opt, w, dw) == OPT_OK && w[0] == -1);
    CHECK(opt_bind(opt, "w", "float64", 1, v, dv) == OPT_OK);
    CHECK_FAILS(OPT_ESTATE, "every parameter has bound arrays: use opt_step", opt_step_f64(opt, w, dw));
    CHECK(opt_step(opt) == OPT_OK && v[0] == -1.5);
    CHECK(opt_bind(opt, "w", "float64", 1, NULL, NULL) == OPT_OK);
    CHECK(opt_bind(opt, "w", "float64", 1, NULL, NULL) == OPT_OK);
    CHECK(opt_step_f64(opt, w, dw) == OPT_OK && w[0] == -2.75 && v[0] == -1.5);
    CHECK(opt_free(opt) == OPT_OK);

    const int64_t table[] = {1, 1};
    opt = opt_create("SGD(lr=1)");
    CHECK(opt > 0 && opt_bind_nd(opt, "w", "float64", "cpu", 2, table, NULL, NULL, NULL, NULL) == OPT_OK);
    CHECK(opt_bind_sparse(opt, "w", "float64", 1, 1, v, 1, &rows, row, dv) == OPT_OK);
    CHECK(opt_step(opt) == OPT_OK && v[0] == -2.5);
    CHECK(opt_free(opt) == OPT_OK);
}

static void binding_one_again_keeps_the_others(void)
{
    double w[] = {1, 2, 3}, dw[] = {2, 2, 2};
    int opt = opt_create("SGD(lr=0.5)");
    CHECK(opt > 0 && opt_bind(opt, "a", "float64", 1, NULL, NULL) == OPT_OK);
    CHECK(opt_bind(opt, "b", "float64", 2, NULL, NULL) == OPT_OK);
    CHECK_FAILS(OPT_EINVAL, "name 'a' is already bound", opt_bind(opt, "a", "float64", 1, NULL, NULL));
    CHECK(opt_step_f64(opt, w, dw) == OPT_OK && w[0] == 0 && w[1] == 1 && w[2] == 2);
    CHECK(opt_bind(opt, "a", "float64", 1, NULL, NULL) == OPT_OK);
    CHECK(opt_step_f64(opt, w, dw) == OPT_OK && w[0] == -1 && w[1] == 0 && w[2] == 1);
    CHECK(opt_free(opt) == OPT_OK);
}

static void lent_and_bound_parameters_are_stepped_together(void)
{
    double w[] = {1}, dw[] = {1}, b[] = {1}, db[] = {2};
    int opt = opt_create("SGD(lr=0.5)");
    CHECK(opt > 0 && opt_bind(opt, "b", "float64", 1, b, db) == OPT_OK);
    CHECK(opt_bind(opt, "w", "float64", 1, NULL, NULL) == OPT_OK);
    CHECK(opt_step_f64(opt, w, dw) == OPT_OK && w[0] == 0.5 && b[0] == 0);
    CHECK(opt_free(opt) == OPT_OK);
}

static int closure(void *user, double *value) { return (void)user, *value = 0, 0; }

static void what_would_need_their_arrays_is_refused(void)
{
    double w[] = {1, 2}, dw[] = {2, 4}, norm, loss;
    float f[2];
    const char *words = "parameter 'w' has arrays only during opt_step_f64 and opt_step_f32";
    int opt = opt_create("SGD(lr=0.5)");
    CHECK_FAILS(OPT_ESTATE, "every parameter has bound arrays", opt_step_f64(opt, w, dw));
    CHECK(opt > 0 && opt_bind(opt, "w", "float64", 2, NULL, NULL) == OPT_OK);
    CHECK_FAILS(OPT_ESTATE, words, opt_step(opt));
    CHECK_FAILS(OPT_ESTATE, words, opt_zero_grad(opt));
    CHECK_FAILS(OPT_ESTATE, words, opt_clip_grad_norm(opt, 1, 2, 0, &norm));
    CHECK_FAILS(OPT_ESTATE, words, opt_clip_grad_value(opt, 1));
    CHECK_FAILS(OPT_ESTATE, words, opt_step_closure(opt, closure, NULL, &loss));
    CHECK_FAILS(OPT_ESTATE, words, opt_iterate(opt, 0));
    CHECK_FAILS(OPT_ESTATE, words, opt_average_swap(opt));
    CHECK_FAILS(OPT_EINVAL, "parameter 'w' is not float32", opt_step_f32(opt, f, f));
    CHECK_FAILS(OPT_EINVAL, "data must not be NULL", opt_step_f64(opt, NULL, dw));
    CHECK_FAILS(OPT_EINVAL, "grad must not be NULL", opt_step_f64(opt, w, NULL));
    CHECK_FAILS(OPT_EINVAL, "NULL for dtype 'float16'", opt_bind(opt, "h", "float16", 2, NULL, NULL));
    if (!CHECK_SANITIZED)
        CHECK_FAILS(OPT_ENOMEM, "out of memory: parameter 'h' takes",
                    opt_bind(opt, "h", "float64", INT64_MAX / 64, NULL, NULL));
    CHECK_FAILS(OPT_EINVAL, "no array can have this shape",
                opt_bind(opt, "h", "float64", INT64_MAX, NULL, NULL));
    const int64_t wrong[] = {2, -3};
    CHECK_FAILS(OPT_EINVAL, "shape[1] must not be negative, got -3",
                opt_bind_nd(opt, "h", "float64", "cpu", 2, wrong, NULL, NULL, NULL, NULL));
    CHECK_FAILS(OPT_EINVAL, "strides[1] must not be negative, got -3",
                opt_bind_nd(opt, "h", "float64", "cpu", 2, shape, NULL, wrong, NULL, NULL));
    CHECK(opt_step_f64(opt, w, dw) == OPT_OK && w[0] == 0 && w[1] == 0);
    CHECK_FAILS(OPT_EINVAL, "'w'", opt_bind(opt, "w", "float64", 3, NULL, NULL)); /* another shape */
    CHECK(opt_step_f64(opt, w, dw) == OPT_OK && w[0] == -1 && w[1] == -2);
    CHECK(opt_free(opt) == OPT_OK);
    CHECK_FAILS(OPT_EHANDLE, "is not an optimizer", opt_step_f64(opt, w, dw));
}

static void a_step_that_fails_leaves_the_hosts_arrays(void)
{
    double w[] = {1}, dw[] = {INFINITY};
    CHECK(opt_init("error_if_nonfinite=True") == OPT_OK);
    int opt = opt_create("Adam(lr=0.5)");
    CHECK(opt_init("error_if_nonfinite=False") == OPT_OK);
    CHECK(opt > 0 && opt_bind(opt, "w", "float64", 1, NULL, NULL) == OPT_OK);
    CHECK_FAILS(OPT_ENONFINITE, "'w'", opt_step_f64(opt, w, dw));
    CHECK(w[0] == 1 && opt_free(opt) == OPT_OK);

    /* Also where PyTorch notices it in its second group: the rate is no float32. */
    float f[] = {1, 1}, df[] = {1, 1};
    opt = opt_create("SGD(lr=0.5, fused=False)");
    CHECK(opt > 0 && opt_bind(opt, "a", "float32", 1, NULL, NULL) == OPT_OK);
    CHECK(opt_group(opt, "lr=0.5") == OPT_OK && opt_bind(opt, "b", "float32", 1, NULL, NULL) == OPT_OK);
    CHECK(opt_step_f32(opt, f, df) == OPT_OK && opt_set(opt, 1, "lr=1e39") == OPT_OK);
    CHECK(opt_step_f32(opt, f, df) < 0);
    CHECK(f[0] == 0.5f && f[1] == 0.5f && opt_free(opt) == OPT_OK);
}

int main(void)
{
    int quiet = check_quiet();
    they_step_as_bound_arrays_do("Adam(lr=0.1)");
    they_step_as_bound_arrays_do("RMSprop(lr=0.1)");
    they_may_be_float32();
    what_lies_in_gaps_stays();
    a_parameter_changes_between_lent_and_bound();
    binding_one_again_keeps_the_others();
    lent_and_bound_parameters_are_stepped_together();
    what_would_need_their_arrays_is_refused();
    a_step_that_fails_leaves_the_hosts_arrays();
    check_was_quiet(quiet);
    return 0;
}
