/* Learning-rate schedules whose numbers are exact in binary. */
#include <math.h>

#include "check.h"

static double w[] = {1, 1}, dw[] = {1, 1};

static int bound(const char *spec)
{
    int opt = opt_create(spec);
    CHECK(opt > 0);
    CHECK(opt_bind(opt, "w", "float64", 1, w, dw) == OPT_OK);
    return opt;
}

static double rate(int opt)
{
    double value = -1;
    CHECK(opt_get(opt, -1, "lr", &value) == OPT_OK);
    return value;
}

static void step(int opt)
{
    CHECK(opt_step(opt) == OPT_OK);
    CHECK(opt_schedule_step(opt) == OPT_OK);
}

static void a_step_scheduler_halves_the_rate_every_second_step(void)
{
    int opt = bound("SGD(lr=1)");
    w[0] = 0;
    CHECK(opt_schedule(opt, "StepLR(step_size=2, gamma=0.5)") == OPT_OK);
    for (int i = 0; i < 4; i++)
        step(opt);
    CHECK(rate(opt) == 0.25);
    CHECK(w[0] == -3); /* 1 + 1 + 0.5 + 0.5 */
    CHECK(opt_free(opt) == OPT_OK);
}

static void the_rate_is_set_at_once(void)
{
    int opt = bound("SGD(lr=1)");
    CHECK(opt_schedule(opt, "ConstantLR(0.5, total_iters=2)") == OPT_OK);
    CHECK(rate(opt) == 0.5);
    step(opt);
    step(opt);
    CHECK(rate(opt) == 1);
    CHECK(opt_free(opt) == OPT_OK);
}

static void schedulers_nest_and_chain(void)
{
    int opt = bound("SGD(lr=1)");
    CHECK(opt_schedule(opt, "SequentialLR([ConstantLR(factor=0.25, total_iters=9), StepLR(1, gamma=0.5)], "
                            "milestones=[2])") == OPT_OK);
    CHECK(rate(opt) == 0.25);
    step(opt);
    CHECK(rate(opt) == 0.25);
    step(opt);
    CHECK(rate(opt) == 1); /* StepLR's first */
    step(opt);
    CHECK(rate(opt) == 0.5);
    CHECK(opt_free(opt) == OPT_OK);

    opt = bound("SGD(lr=1)");
    CHECK(opt_schedule(opt, "ChainedScheduler([StepLR(1, gamma=0.5), ExponentialLR(gamma=0.5)])") == OPT_OK);
    CHECK(opt_schedule(opt, "ExponentialLR(0.5)") == OPT_OK);
    step(opt);
    CHECK(rate(opt) == 0.125);
    CHECK(opt_free(opt) == OPT_OK);
}

static void a_plateau_lowers_the_rate(void)
{
    int opt = bound("SGD(lr=1)");
    CHECK(opt_schedule(opt, "ReduceLROnPlateau('min', factor=0.5, patience=1)") == OPT_OK);
    CHECK_FAILS(OPT_ESTATE, "ReduceLROnPlateau needs a value: call opt_schedule_step_metric",
                opt_schedule_step(opt));
    for (int i = 0; i < 3; i++) {
        CHECK(rate(opt) == 1);
        CHECK(opt_schedule_step_metric(opt, 7) == OPT_OK);
    }
    CHECK(rate(opt) == 0.5);
    CHECK(opt_free(opt) == OPT_OK);
}

static void a_warm_up_goes_by_steps_and_a_plateau_by_epochs(void)
{
    int opt = bound("SGD(lr=1)");
    CHECK(opt_schedule(opt, "ConstantLR(0.5, total_iters=2)") == OPT_OK);
    CHECK(opt_schedule(opt, "ReduceLROnPlateau(factor=0.5, patience=0)") == OPT_OK);
    step(opt);
    step(opt);
    CHECK(rate(opt) == 1);
    CHECK(opt_schedule_step_metric(opt, 3) == OPT_OK && rate(opt) == 1);
    CHECK(opt_schedule_step_metric(opt, 3) == OPT_OK && rate(opt) == 0.5);
    CHECK(opt_free(opt) == OPT_OK);
}

static void warm_restarts_take_fractions_of_an_epoch(void)
{
    int opt = bound("SGD(lr=1)");
    CHECK(opt_schedule(opt, "CosineAnnealingWarmRestarts(T_0=2)") == OPT_OK);
    CHECK(opt_schedule_step_metric(opt, 1) == OPT_OK && fabs(rate(opt) - 0.5) < 1e-15);
    CHECK(opt_schedule_step_metric(opt, 0.5) == OPT_OK && rate(opt) > 0.85 && rate(opt) < 0.86);
    CHECK(opt_free(opt) == OPT_OK);
}

/* A loss is no epoch: beside a plateau, which watches one, restarts go by opt_schedule_step. */
static void a_loss_is_for_the_plateau_alone(void)
{
    const char *const restarts[] = {
        "CosineAnnealingWarmRestarts(T_0=2)",
        "ChainedScheduler([CosineAnnealingWarmRestarts(T_0=2)])",
        "SequentialLR([CosineAnnealingWarmRestarts(T_0=2), StepLR(9)], milestones=[9])",
    };
    for (size_t i = 0; i < 2 * sizeof restarts / sizeof *restarts; i++) {
        int opt = bound("SGD(lr=1)");
        const char *first = "ReduceLROnPlateau(factor=0.5, patience=0)", *second = restarts[i / 2];
        CHECK(opt_schedule(opt, i % 2 ? first : second) == OPT_OK);
        CHECK(opt_schedule(opt, i % 2 ? second : first) == OPT_OK);
        step(opt);
        CHECK(fabs(rate(opt) - 0.5) < 1e-15);
        CHECK(opt_schedule_step_metric(opt, 0.25) == OPT_OK && fabs(rate(opt) - 0.5) < 1e-15);
        step(opt);
        CHECK(rate(opt) == 1); /* the restart */
        CHECK(opt_schedule_step_metric(opt, 0.5) == OPT_OK && rate(opt) == 0.5);
        CHECK(opt_free(opt) == OPT_OK);
    }
}

static int calls;

static int by_group(void *user, double *value)
{
    (void)user;
    value[0] = value[0] == 0 && value[1] == 1 ? 0.25 : 0.5;
    return 0;
}

static void a_function_is_told_the_group(void)
{
    double first = 0, second = 0;
    int opt = bound("SGD(lr=1)");
    CHECK(opt_group(opt, "lr=2") == OPT_OK && opt_bind(opt, "v", "float64", 1, w + 1, dw + 1) == OPT_OK);
    CHECK(opt_schedule_callback(opt, "LambdaLR()", by_group, NULL) == OPT_OK);
    CHECK(opt_get(opt, 0, "lr", &first) == OPT_OK && first == 0.5);
    CHECK(opt_get(opt, 1, "lr", &second) == OPT_OK && second == 0.5);
    step(opt);
    CHECK(opt_get(opt, 1, "lr", &second) == OPT_OK && second == 1);
    CHECK(opt_free(opt) == OPT_OK);
}

static int refuse(void *user, double *value) { return user == value ? 0 : -77; }

static void a_function_that_fails_or_has_no_use_is_an_error(void)
{
    int opt = bound("SGD(lr=1)");
    CHECK_FAILS(-77, "the host's function failed with status -77",
                opt_schedule_callback(opt, "LambdaLR()", refuse, NULL));
    CHECK_FAILS(OPT_EINVAL, "nothing in it takes a function",
                opt_schedule_callback(opt, "StepLR(1)", refuse, NULL));
    CHECK(rate(opt) == 1);
    CHECK(opt_schedule_callback(opt, "CyclicLR(0.5, 1.5, step_size_up=2, cycle_momentum=False)", by_group,
                                NULL) == OPT_OK);
    CHECK(opt_free(opt) == OPT_OK);
}

static int factor(void *user, double *value)
{
    calls++;
    if (*value == 3)
        return -77;
    *value = 1 + *(double *)user * *value;
    return 0;
}

static void functions_of_the_host_give_factors(void)
{
    double slope = 0.5;
    int opt = bound("SGD(lr=1)");
    CHECK_FAILS(OPT_EINVAL, "LambdaLR needs a function: attach it with opt_schedule_callback",
                opt_schedule(opt, "LambdaLR()"));
    CHECK(opt_schedule_callback(opt, "LambdaLR()", factor, &slope) == OPT_OK);
    CHECK(calls == 1 && rate(opt) == 1);
    step(opt);
    CHECK(rate(opt) == 1.5);
    step(opt);
    CHECK(rate(opt) == 2);
    /* Epoch 3 fails, with its own status, and the schedule is where it was, however often. */
    for (int i = 0; i < 2; i++)
        CHECK_FAILS(-77, "the host's function failed with status -77", opt_schedule_step(opt));
    CHECK(rate(opt) == 2);
    CHECK(opt_step(opt) == OPT_OK);
    CHECK(opt_free(opt) == OPT_OK);

    opt = bound("SGD(lr=1)");
    CHECK(opt_schedule_callback(opt, "SequentialLR([MultiplicativeLR(), StepLR(1)], milestones=[9])", factor,
                                &slope) == OPT_OK);
    step(opt);
    step(opt);
    CHECK(rate(opt) == 3); /* 1.5 * 2 */
    CHECK(opt_free(opt) == OPT_OK);
}

static void schedulers_are_taken_off(void)
{
    int opt = opt_create("SGD(lr=1)");
    CHECK(opt_schedule(opt, NULL) == OPT_OK); /* there is none */
    CHECK(opt_bind(opt, "w", "float64", 1, w, dw) == OPT_OK);
    CHECK(opt_schedule(opt, NULL) == OPT_OK);
    CHECK(opt_schedule(opt, "StepLR(1, gamma=0.5)") == OPT_OK);
    step(opt);
    CHECK(opt_schedule(opt, NULL) == OPT_OK && rate(opt) == 0.5);
    CHECK_FAILS(OPT_ESTATE, "there is no scheduler: call opt_schedule first", opt_schedule_step(opt));
    w[0] = 0;
    for (int i = 0; i < 3; i++)
        CHECK(opt_step(opt) == OPT_OK);
    CHECK(w[0] == -1.5);

    double slope = 0.5;
    CHECK(opt_schedule_callback(opt, "LambdaLR()", factor, &slope) == OPT_OK);
    CHECK(rate(opt) == 0.5); /* the first factor is 1, and of the rate as it was */
    CHECK(opt_step(opt) == OPT_OK && opt_schedule_step(opt) == OPT_OK && rate(opt) == 0.75);
    CHECK_FAILS(OPT_EINVAL, "spec must not be NULL", opt_schedule_callback(opt, NULL, factor, &slope));
    CHECK(opt_schedule(opt, NULL) == OPT_OK);
    int before = calls;
    CHECK(opt_schedule(opt, "StepLR(1, gamma=0.5)") == OPT_OK && rate(opt) == 0.75);
    step(opt);
    CHECK(calls == before && rate(opt) == 0.375);
    CHECK(opt_iterate(opt, 0) == OPT_EVALUATE);
    CHECK_FAILS(OPT_ESTATE, "opt_schedule in the middle of a step", opt_schedule(opt, NULL));
    CHECK(opt_free(opt) == OPT_OK);
}

static void a_momentum_stays_where_its_scheduler_has_left_it(void)
{
    double before, after;
    int opt = bound("SGD(lr=1, momentum=0.5)");
    CHECK(opt_schedule(opt, "OneCycleLR(max_lr=2, total_steps=10)") == OPT_OK);
    step(opt);
    CHECK(opt_get(opt, 0, "momentum", &before) == OPT_OK);
    CHECK(opt_schedule(opt, NULL) == OPT_OK && opt_get(opt, 0, "momentum", &after) == OPT_OK);
    CHECK(before == after && before != 0.5);
    CHECK_FAILS(OPT_EINVAL, "no hyperparameter 'max_lr'", opt_get(opt, 0, "max_lr", &after));
    CHECK(opt_free(opt) == OPT_OK);
}

static int leave_alone(void *user, double *value)
{
    (void)value;
    return *(int *)user;
}

static int stay_and_fall(void *user, double *value)
{
    (void)user;
    value[0] = value[0] < 3 ? 1 : 0.5;
    return 0;
}

static void a_function_that_leaves_the_value_alone_is_warned_of(void)
{
    int nothing = 0, opt = bound("SGD(lr=0.5)");
    CHECK(opt_schedule_callback(opt, "LambdaLR()", leave_alone, &nothing) == OPT_OK && rate(opt) == 0);
    CHECK(strstr(opt_warning(),
                 "the host's function returned 0 and left value[0] unchanged: the factor is the epoch, 0\n"));
    for (int i = 1; i < 4; i++) { /* which may be meant so */
        step(opt);
        CHECK(rate(opt) == 0.5 * i);
    }
    CHECK(strcmp(opt_warning(), "") == 0);
    CHECK(opt_schedule(opt, NULL) == OPT_OK && opt_set(opt, 0, "lr=0.5") == OPT_OK);
    CHECK(opt_schedule_callback(opt, "LambdaLR()", stay_and_fall, NULL) == OPT_OK);
    for (int i = 1; i < 5; i++)
        step(opt);
    CHECK(rate(opt) == 0.25 && strcmp(opt_warning(), "") == 0); /* 1 at epoch 1 is no slip */
    CHECK(opt_free(opt) == OPT_OK);
}

static void a_function_that_returns_more_than_0_fails(void)
{
    int more = 3, opt = bound("SGD(lr=0.5)");
    CHECK_FAILS(OPT_EINVAL, "the host's function returned 3, which is neither 0 nor negative",
                opt_schedule_callback(opt, "LambdaLR()", leave_alone, &more));
    CHECK(rate(opt) == 0.5);
    CHECK(opt_free(opt) == OPT_OK);
}

static void mistakes_are_errors_that_change_nothing(void)
{
    int opt = opt_create("SGD(lr=1)");
    CHECK_FAILS(OPT_ESTATE, "nothing is bound: call opt_bind before opt_schedule",
                opt_schedule(opt, "StepLR(1)"));
    CHECK(opt_bind(opt, "w", "float64", 1, w, dw) == OPT_OK);
    CHECK_FAILS(OPT_EINVAL, "function must not be NULL",
                opt_schedule_callback(opt, "LambdaLR()", NULL, NULL));
    CHECK_FAILS(OPT_EINVAL, "spec 'StepLr(1)': no scheduler 'StepLr': did you mean StepLR",
                opt_schedule(opt, "StepLr(1)"));
    CHECK_FAILS(OPT_EINVAL, "StepLR: missing a required argument: 'step_size'",
                opt_schedule(opt, "StepLR()"));
    CHECK_FAILS(OPT_EINVAL, "no argument of StepLR 'size'", opt_schedule(opt, "StepLR(size=1)"));
    CHECK_FAILS(OPT_EINVAL, "SequentialLR does not support `ReduceLROnPlateau`",
                opt_schedule(opt, "SequentialLR([ConstantLR(0.25), ReduceLROnPlateau()], milestones=[1])"));
    CHECK(rate(opt) == 1); /* ConstantLR's is undone */
    CHECK_FAILS(OPT_ESTATE, "there is no scheduler: call opt_schedule first", opt_schedule_step(opt));
    CHECK(opt_schedule(opt, "StepLR(1)") == OPT_OK);
    CHECK_FAILS(OPT_ESTATE, "no scheduler takes the value 1.0", opt_schedule_step_metric(opt, 1));
    CHECK_FAILS(OPT_ESTATE, "'v' is new after the first step or schedule",
                opt_bind(opt, "v", "float64", 1, w, dw));
    CHECK(opt_free(opt) == OPT_OK);
}

static void warnings_are_kept_for_who_asks(void)
{
    for (int i = 0; i < 2; i++) { /* each optimizer's, not only the first one's */
        int opt = bound("SGD(lr=1)");
        CHECK(opt_schedule(opt, "StepLR(1)") == OPT_OK);
        CHECK(strcmp(opt_warning(), "") == 0);
        CHECK(opt_schedule_step(opt) == OPT_OK);
        const char *text = opt_warning();
        CHECK(strstr(text, "UserWarning: Detected call of `lr_scheduler.step()` before `optimizer.step()`"));
        CHECK(strchr(text, '\n') == text + strlen(text) - 1);
        CHECK(strcmp(opt_warning(), "") == 0);
        CHECK(opt_free(opt) == OPT_OK);
    }
}

int main(void)
{
    int quiet = check_quiet();
    a_step_scheduler_halves_the_rate_every_second_step();
    the_rate_is_set_at_once();
    schedulers_nest_and_chain();
    a_plateau_lowers_the_rate();
    a_warm_up_goes_by_steps_and_a_plateau_by_epochs();
    warm_restarts_take_fractions_of_an_epoch();
    a_loss_is_for_the_plateau_alone();
    a_function_is_told_the_group();
    a_function_that_fails_or_has_no_use_is_an_error();
    functions_of_the_host_give_factors();
    schedulers_are_taken_off();
    a_momentum_stays_where_its_scheduler_has_left_it();
    a_function_that_leaves_the_value_alone_is_warned_of();
    a_function_that_returns_more_than_0_fails();
    mistakes_are_errors_that_change_nothing();
    CHECK(strcmp(opt_warning(), "") == 0);
    warnings_are_kept_for_who_asks();
    check_was_quiet(quiet);
    return 0;
}
