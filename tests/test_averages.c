/* Averages of the weights, with numbers worked out by hand. */
#include "check.h"

static double w[] = {0, 0}, dw[] = {-1, -2};

static int bound(void)
{
    int opt = opt_create("SGD(lr=1)");
    w[0] = w[1] = 0;
    CHECK(opt > 0 && opt_bind(opt, "w", "float64", 2, w, dw) == OPT_OK);
    return opt;
}

static void equal_weights(void)
{
    int opt = bound();
    double average[2] = {7, 7};
    CHECK(opt_step(opt) == OPT_OK); /* not averaged */
    CHECK(opt_average(opt, "AveragedModel()") == OPT_OK);
    CHECK_FAILS(OPT_ESTATE, "no step has been averaged yet", opt_average_get(opt, "w", average));
    CHECK(average[0] == 7);
    for (int i = 0; i < 3; i++)
        CHECK(opt_step(opt) == OPT_OK); /* 2, 3, 4 */
    CHECK(opt_average_get(opt, "w", average) == OPT_OK);
    CHECK(average[0] == 3 && average[1] == 6);
    CHECK(w[0] == 4 && w[1] == 8);

    CHECK(opt_average_swap(opt) == OPT_OK);
    CHECK(w[0] == 3 && w[1] == 6);
    CHECK_FAILS(OPT_ESTATE, "opt_step while the averages are swapped in", opt_step(opt));
    CHECK_FAILS(OPT_ESTATE, "the averages are swapped in", opt_average_get(opt, "w", average));
    CHECK(opt_average_swap(opt) == OPT_OK);
    CHECK(w[0] == 4 && w[1] == 8);
    CHECK(opt_step(opt) == OPT_OK);
    CHECK(opt_average_get(opt, "w", average) == OPT_OK && average[0] == 3.5);
    CHECK(opt_free(opt) == OPT_OK);
}

static void exponential_weights_of_a_column_major_array(void)
{
    const int64_t shape[] = {2, 2}, columns[] = {1, 2};
    double m[] = {0, 0, 0, 0}, dm[] = {-1, -2, -3, -4}, average[4];
    int opt = opt_create("SGD(lr=1)");
    CHECK(opt_bind_nd(opt, "m", "float64", "cpu", 2, shape, m, columns, dm, columns) == OPT_OK);
    CHECK(opt_average(opt, "AveragedModel(multi_avg_fn=get_ema_multi_avg_fn(decay=0.5))") == OPT_OK);
    CHECK(opt_step(opt) == OPT_OK);
    CHECK(opt_step(opt) == OPT_OK);
    CHECK(opt_average_get(opt, "m", average) == OPT_OK); /* 1.5 steps, and in C order */
    CHECK(average[0] == 1.5 && average[1] == 4.5 && average[2] == 3 && average[3] == 6);
    CHECK(opt_free(opt) == OPT_OK);
}

static void mistakes_are_errors(void)
{
    int opt = opt_create("SGD(lr=1)");
    double average[2];
    CHECK_FAILS(OPT_ESTATE, "nothing is bound", opt_average(opt, "AveragedModel()"));
    CHECK(opt_bind(opt, "w", "float64", 2, w, dw) == OPT_OK);
    CHECK_FAILS(OPT_ESTATE, "there is no average: call opt_average first", opt_average_swap(opt));
    CHECK_FAILS(OPT_EINVAL, "spec 'EMA()': no average 'EMA': write 'AveragedModel()'",
                opt_average(opt, "EMA()"));
    CHECK_FAILS(OPT_EINVAL, "no averaging function 'update_bn'",
                opt_average(opt, "AveragedModel(avg_fn=update_bn())"));
    CHECK_FAILS(OPT_EINVAL, "avg_fn must be one of get_ema_avg_fn()",
                opt_average(opt, "AveragedModel(avg_fn='x')"));
    CHECK_FAILS(OPT_EINVAL, "the average is on the parameters' device",
                opt_average(opt, "AveragedModel(device='meta')"));
    CHECK_FAILS(OPT_EINVAL, "Invalid decay value",
                opt_average(opt, "AveragedModel(avg_fn=get_ema_avg_fn(2))"));
    CHECK_FAILS(OPT_EINVAL, "spec must not be NULL", opt_average(opt, NULL));
    CHECK_FAILS(OPT_EINVAL,
                "method 'eval': SGD has no train() and eval(), and needs none: leave out opt_call",
                opt_call(opt, "eval"));
    CHECK_FAILS(OPT_EINVAL, "no method 'evaluate': did you mean eval?", opt_call(opt, "evaluate"));
    CHECK_FAILS(OPT_EINVAL, "method must not be NULL", opt_call(opt, NULL));
    CHECK(opt_average(opt, "AveragedModel()") == OPT_OK);
    CHECK(opt_step(opt) == OPT_OK);
    CHECK_FAILS(OPT_EINVAL, "no parameter 'v': there are w", opt_average_get(opt, "v", average));
    CHECK_FAILS(OPT_EINVAL, "name must not be NULL", opt_average_get(opt, NULL, average));
    CHECK_FAILS(OPT_EINVAL, "data must not be NULL", opt_average_get(opt, "w", NULL));
    CHECK(opt_free(opt) == OPT_OK);
}

int main(void)
{
    int quiet = check_quiet();
    equal_weights();
    exponential_weights_of_a_column_major_array();
    mistakes_are_errors();
    check_was_quiet(quiet);
    return 0;
}
