/* Parameter groups, and reading and setting hyperparameters. */
#include "check.h"

static double a[] = {1}, b[] = {1}, c[] = {1}, grad[] = {1};

static void groups_step_by_their_own_options(void)
{
    int opt = opt_create("SGD(lr=0.5)");
    CHECK(opt_bind(opt, "a", "float64", 1, a, grad) == OPT_OK);
    CHECK(opt_group(opt, "lr=0.25") == OPT_OK);
    CHECK(opt_bind(opt, "b", "float64", 1, b, grad) == OPT_OK);
    CHECK(opt_group(opt, "lr=2, weight_decay=1") == OPT_OK);
    CHECK_FAILS(OPT_ESTATE, "nothing is bound to the last group", opt_step(opt));
    CHECK_FAILS(OPT_ESTATE, "nothing is bound to the group before this one", opt_group(opt, "lr=3"));
    CHECK(opt_bind(opt, "c", "float64", 1, c, grad) == OPT_OK);
    CHECK(opt_step(opt) == OPT_OK);
    CHECK(a[0] == 0.5 && b[0] == 0.75 && c[0] == -3);
    CHECK_FAILS(OPT_ESTATE, "options 'lr=1'", opt_group(opt, "lr=1"));

    double value = 0;
    CHECK(opt_get(opt, 1, "lr", &value) == OPT_OK && value == 0.25);
    CHECK(opt_get(opt, -1, "momentum", &value) == OPT_OK && value == 0);
    CHECK_FAILS(OPT_EINVAL, "'lr' differs between the 3 groups", opt_get(opt, -1, "lr", &value));
    CHECK_FAILS(OPT_EINVAL, "group must be 0 to 2, or -1 for all, got 3", opt_get(opt, 3, "lr", &value));
    CHECK_FAILS(OPT_EINVAL, "got -2", opt_set(opt, -2, "lr=1"));
    CHECK(opt_set(opt, 1, "lr=1") == OPT_OK);
    CHECK(opt_set(opt, -1, "weight_decay=0") == OPT_OK);
    CHECK(opt_step(opt) == OPT_OK);
    CHECK(a[0] == 0 && b[0] == -0.25 && c[0] == -5);
    CHECK(opt_free(opt) == OPT_OK);
}

static void the_first_group_can_have_options_too(void)
{
    int opt = opt_create("SGD(lr=0.5)");
    a[0] = 1;
    CHECK(opt_group(opt, "lr=0.25") == OPT_OK);
    CHECK(opt_bind(opt, "a", "float64", 1, a, grad) == OPT_OK);
    double value = 0;
    CHECK(opt_get(opt, 0, "lr", &value) == OPT_OK && value == 0.25);
    CHECK(opt_set(opt, 0, "lr=1") == OPT_OK); /* before the first step as well */
    CHECK(opt_group(opt, "lr=9") == OPT_OK);
    CHECK(strstr(opt_describe(opt), "parameter 'a'")); /* with a group that is still empty */
    CHECK(opt_bind(opt, "b", "float64", 1, b, grad) == OPT_OK);
    CHECK(opt_step(opt) == OPT_OK);
    CHECK(a[0] == 0);
    CHECK(opt_free(opt) == OPT_OK);
}

static void tuples_and_truths_are_numbers(void)
{
    double value = 0;
    int opt = opt_create("Adam(betas=(0.5, 0.75), amsgrad=True)");
    CHECK(opt_get(opt, 0, "betas[1]", &value) == OPT_OK && value == 0.75);
    CHECK(opt_get(opt, 0, "amsgrad", &value) == OPT_OK && value == 1);
    CHECK(opt_set(opt, 0, "betas=(0.25, 0.5), maximize=True") == OPT_OK);
    CHECK(opt_get(opt, 0, "betas[0]", &value) == OPT_OK && value == 0.25);
    CHECK(opt_get(opt, 0, "maximize", &value) == OPT_OK && value == 1);
    CHECK_FAILS(OPT_EINVAL, "name 'betas' must be 'betas[0]' to 'betas[1]'",
                opt_get(opt, 0, "betas", &value));
    CHECK_FAILS(OPT_EINVAL, "name 'betas[2]' must be", opt_get(opt, 0, "betas[2]", &value));
    CHECK_FAILS(OPT_EINVAL, "name 'lr[0]' is not a tuple", opt_get(opt, 0, "lr[0]", &value));
    CHECK_FAILS(OPT_EINVAL, "name 'foreach' is None, which is not a number",
                opt_get(opt, 0, "foreach", &value));
    CHECK_FAILS(OPT_EINVAL, "no hyperparameter 'lrr': did you mean lr", opt_get(opt, 0, "lrr", &value));
    CHECK(opt_free(opt) == OPT_OK);
}

static void an_option_set_before_the_group_stays(void)
{
    double value = 0;
    int opt = opt_create("SGD(lr=0.5)");
    CHECK(opt_set(opt, -1, "weight_decay=0.25") == OPT_OK);
    CHECK(opt_group(opt, "lr=0.25") == OPT_OK);
    CHECK(opt_bind(opt, "a", "float64", 1, a, grad) == OPT_OK);
    CHECK(opt_get(opt, 0, "weight_decay", &value) == OPT_OK && value == 0.25);
    CHECK(opt_get(opt, 0, "lr", &value) == OPT_OK && value == 0.25);
    CHECK(opt_free(opt) == OPT_OK);
}

/* Options whose state a step before would have had to make, or that the kernels cannot read. */
static void options_that_the_next_step_could_not_take_are_refused(void)
{
    const char *const cases[][3] = {{"RMSprop(lr=0.5)", "momentum=0.9", "momentum_buffer"},
                                    {"Adam(lr=0.5)", "amsgrad=True", "max_exp_avg_sq"},
                                    {"Adam(lr=0.5)", "maximize='no'", "maximize='no'"},
                                    {"AdamW(lr=0.5)", "decoupled_weight_decay='no'", "no option"}};
    for (int i = 0; i < 4; i++) {
        int opt = opt_create(cases[i][0]);
        a[0] = 1;
        CHECK(opt_bind(opt, "a", "float64", 1, a, grad) == OPT_OK);
        CHECK(opt_step(opt) == OPT_OK);
        CHECK_FAILS(OPT_EINVAL, cases[i][2], opt_set(opt, -1, cases[i][1]));
        CHECK(opt_step(opt) == OPT_OK);
        CHECK(opt_free(opt) == OPT_OK);
    }
}

static void a_number_can_be_set_at_each_step(void)
{
    double value = 0;
    int opt = opt_create("SGD(lr=0.5)");
    a[0] = b[0] = 0;
    CHECK(opt_bind(opt, "a", "float64", 1, a, grad) == OPT_OK);
    CHECK(opt_group(opt, "lr=1") == OPT_OK);
    CHECK(opt_bind(opt, "b", "float64", 1, b, grad) == OPT_OK);
    double sum = 0;
    for (int i = 1; i <= 20; i++) {
        CHECK(opt_set_value(opt, 0, "lr", i) == OPT_OK);
        CHECK(opt_set_value(opt, 1, "lr", 0.5 * i) == OPT_OK);
        CHECK_FAILS(OPT_EINVAL, "lr=-1.0: Invalid learning rate: -1", opt_set_value(opt, 0, "lr", -1));
        CHECK_FAILS(OPT_EINVAL, "group must be 0 to 1, or -1 for all, got 2", opt_set_value(opt, 2, "lr", i));
        CHECK(opt_step(opt) == OPT_OK);
        sum += i;
        CHECK(a[0] == -sum && b[0] == -0.5 * sum);
    }
    CHECK(opt_get(opt, 1, "lr", &value) == OPT_OK && value == 10);
    CHECK(opt_set_value(opt, -1, "lr", 1) == OPT_OK && opt_set_value(opt, 0, "lr", 2) == OPT_OK);
    CHECK(opt_schedule(opt, "ConstantLR(0.5)") == OPT_OK);
    CHECK(opt_get(opt, 0, "lr", &value) == OPT_OK && value == 1);
    CHECK(opt_get(opt, 1, "lr", &value) == OPT_OK && value == 0.5);
    CHECK(opt_set_value(opt, 1, "lr", 4) == OPT_OK && opt_step(opt) == OPT_OK && b[0] == -0.5 * sum - 4);
    CHECK_FAILS(OPT_EINVAL, "name 'nesterov' is True or False, not a number: call opt_set",
                opt_set_value(opt, 0, "nesterov", 1));
    CHECK_FAILS(OPT_EINVAL, "name must not be NULL", opt_set_value(opt, 0, NULL, 1));
    CHECK(opt_free(opt) == OPT_OK);
}

static void what_torch_refuses_changes_nothing(void)
{
    double value = 0;
    int opt = opt_create("Adam(lr=0.5)");
    CHECK_FAILS(OPT_EINVAL, "options 'lr=-1': lr=-1: Invalid learning rate: -1", opt_set(opt, 0, "lr=-1"));
    CHECK_FAILS(OPT_EINVAL, "Invalid beta parameter at index 1: 2.0",
                opt_set(opt, 0, "lr=0.1, betas=(0.9, 2.0)"));
    CHECK_FAILS(OPT_EINVAL, "no option 'momentum'", opt_set(opt, 0, "momentum=0.9"));
    CHECK_FAILS(OPT_EINVAL, "no option 'fused'", opt_set(opt, 0, "fused=True"));
    CHECK_FAILS(OPT_EINVAL, "no option 'params'", opt_group(opt, "params=1"));
    CHECK_FAILS(OPT_EINVAL, "options 'lr': it must be", opt_group(opt, "lr"));
    CHECK_FAILS(OPT_EINVAL, "options must not be NULL", opt_group(opt, NULL));
    CHECK_FAILS(OPT_EINVAL, "options must not be NULL", opt_set(opt, 0, NULL));
    CHECK_FAILS(OPT_EINVAL, "name must not be NULL", opt_get(opt, 0, NULL, &value));
    CHECK_FAILS(OPT_EINVAL, "value must not be NULL", opt_get(opt, 0, "lr", NULL));
    CHECK(opt_get(opt, 0, "lr", &value) == OPT_OK && value == 0.5);
    CHECK(opt_get(opt, 0, "betas[1]", &value) == OPT_OK && value == 0.999);
    CHECK(opt_free(opt) == OPT_OK);

    opt = opt_create("LBFGS()");
    CHECK(opt_bind(opt, "a", "float64", 1, a, grad) == OPT_OK);
    CHECK_FAILS(OPT_EINVAL, "LBFGS doesn't support per-parameter options", opt_group(opt, "lr=1"));
    CHECK(opt_free(opt) == OPT_OK);
}

static void lists_name_what_is_there(void)
{
    const char *text = opt_list("optimizers");
    CHECK(text && strstr(text, "Adam\n") && strstr(text, "LBFGS\n") && !strstr(text, "Optimizer"));
    text = opt_list("schedulers");
    CHECK(text && strstr(text, "StepLR\n") && strstr(text, "SWALR\n"));
    CHECK(strstr(opt_list("dtypes"), "bfloat16\n") && strstr(opt_list("devices"), "cpu\n"));
    text = opt_list("SGD");
    CHECK(text && strstr(text, "lr=0.001\n") && strstr(text, "nesterov=False\n") && !strstr(text, "params"));
    CHECK(strstr(opt_list("StepLR"), "step_size\ngamma=0.1\n"));
    CHECK_FAILS(OPT_EINVAL, "no list 'Adm': did you mean Adam", opt_list("Adm") ? OPT_OK : OPT_EINVAL);
    CHECK_FAILS(OPT_EINVAL, "kind must not be NULL", opt_list(NULL) ? OPT_OK : OPT_EINVAL);
}

int main(void)
{
    int quiet = check_quiet();
    groups_step_by_their_own_options();
    the_first_group_can_have_options_too();
    tuples_and_truths_are_numbers();
    an_option_set_before_the_group_stays();
    options_that_the_next_step_could_not_take_are_refused();
    a_number_can_be_set_at_each_step();
    what_torch_refuses_changes_nothing();
    lists_name_what_is_there();
    check_was_quiet(quiet);
    return 0;
}
