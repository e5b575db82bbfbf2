/* Steps whose numbers can be worked out by hand: all of them are exact in binary. */
#include "check.h"

static void sgd_subtracts_the_learning_rate_times_the_gradient(void)
{
    double w[] = {1, 2, 3}, dw[] = {2, 4, -6};
    int opt = opt_create("SGD(lr=0.5)");
    CHECK(opt > 0);
    CHECK(opt_bind(opt, "w", "float64", 3, w, dw) == OPT_OK);
    CHECK(opt_step(opt) == OPT_OK);
    CHECK(w[0] == 0 && w[1] == 0 && w[2] == 6);
    CHECK(dw[0] == 2 && dw[1] == 4 && dw[2] == -6);
    CHECK(opt_free(opt) == OPT_OK);
    CHECK(w[0] == 0 && w[1] == 0 && w[2] == 6);
}

static void maximize_adds_it(void)
{
    float w[] = {1}, dw[] = {2};
    int opt = opt_create("SGD(lr=0.5, maximize=True)");
    CHECK(opt_bind(opt, "w", "float32", 1, w, dw) == OPT_OK);
    CHECK(opt_step(opt) == OPT_OK);
    CHECK(w[0] == 2);
    CHECK(opt_free(opt) == OPT_OK);
}

static void each_step_reads_the_gradient_that_is_there_then(void)
{
    double w[] = {1}, dw[] = {2};
    int opt = opt_create("SGD(lr=0.5)");
    CHECK(opt_bind(opt, "w", "float64", 1, w, dw) == OPT_OK);
    CHECK(opt_step(opt) == OPT_OK);
    dw[0] = -8;
    CHECK(opt_step(opt) == OPT_OK);
    CHECK(w[0] == 4);
    w[0] = 100; /* and the parameter */
    CHECK(opt_step(opt) == OPT_OK);
    CHECK(w[0] == 104);
    CHECK(opt_free(opt) == OPT_OK);
}

static void several_parameters_of_several_dtypes_move_by_their_own_gradients(void)
{
    double a[] = {1, 1}, da[] = {2, 4};
    float b[] = {1}, db[] = {-2};
    int opt = opt_create("SGD(lr=0.5)");
    CHECK(opt_bind(opt, "layer.a", "float64", 2, a, da) == OPT_OK);
    CHECK(opt_bind(opt, "layer.b", "float32", 1, b, db) == OPT_OK);
    CHECK(opt_step(opt) == OPT_OK);
    CHECK(a[0] == 0 && a[1] == -1 && b[0] == 2);
    CHECK(opt_free(opt) == OPT_OK);
}

static void optimizers_are_independent(void)
{
    double v[] = {1}, w[] = {1}, d[] = {1};
    int slow = opt_create("SGD(lr=0.25, momentum=0.5)"), fast = opt_create("SGD(lr=0.5, momentum=0.5)");
    CHECK(slow > 0 && fast > 0 && slow != fast);
    CHECK(opt_bind(slow, "w", "float64", 1, v, d) == OPT_OK);
    CHECK(opt_bind(fast, "w", "float64", 1, w, d) == OPT_OK);
    CHECK(opt_step(slow) == OPT_OK);
    CHECK(opt_step(fast) == OPT_OK);
    CHECK(opt_step(fast) == OPT_OK);
    CHECK(v[0] == 0.75 && w[0] == -0.25); /* 1 - 0.5 - 0.5 * 1.5 */
    CHECK(opt_free(slow) == OPT_OK);
    CHECK(opt_step(fast) == OPT_OK);
    CHECK(opt_free(fast) == OPT_OK);
}

static void binding_again_moves_the_parameter_and_keeps_its_state(void)
{
    double w[] = {1}, dw[] = {1}, moved[] = {10}, dmoved[] = {2};
    int opt = opt_create("SGD(lr=0.5, momentum=0.5)");
    CHECK(opt_bind(opt, "w", "float64", 1, w, dw) == OPT_OK);
    CHECK(opt_step(opt) == OPT_OK); /* momentum is 1 */
    CHECK(w[0] == 0.5);
    CHECK(opt_bind(opt, "w", "float64", 1, moved, dmoved) == OPT_OK);
    CHECK(opt_step(opt) == OPT_OK); /* momentum is 0.5 + 2 */
    CHECK(moved[0] == 8.75);
    CHECK(w[0] == 0.5 && dw[0] == 1);
    CHECK(opt_free(opt) == OPT_OK);
}

/* A 2 x 3 array inside a 4 x 4 one, in rows or in columns, with 9s around that must stay. */
static void strided_arrays_are_stepped_without_touching_the_gaps(void)
{
    const int64_t shape[] = {2, 3}, rows[] = {4, 1}, columns[] = {1, 4};
    const int64_t *layouts[] = {rows, columns};
    const char *specs[] = {"SGD(lr=0.5)", "SGD(lr=0.5, foreach=True)", "Adagrad(lr=0.5, eps=0)"};
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < 2; j++)
            for (int s = 0; s < 3; s++) {
                double w[16], dw[16];
                for (int k = 0; k < 16; k++)
                    w[k] = dw[k] = 9;
                for (int r = 0; r < 2; r++)
                    for (int c = 0; c < 3; c++) {
                        w[5 + r * layouts[i][0] + c * layouts[i][1]] = 1;
                        dw[5 + r * layouts[j][0] + c * layouts[j][1]] = s == 2 ? 1 : r + 2 * c;
                    }
                int opt = opt_create(specs[s]);
                CHECK(opt_bind_nd(opt, "w", "float64", "cpu", 2, shape, w + 5, layouts[i], dw + 5,
                                  layouts[j]) == OPT_OK);
                CHECK(opt_step(opt) == OPT_OK);
                int untouched = 0;
                for (int k = 0; k < 16; k++)
                    untouched += w[k] == 9;
                CHECK(untouched == 10);
                for (int r = 0; r < 2; r++)
                    for (int c = 0; c < 3; c++)
                        CHECK(w[5 + r * layouts[i][0] + c * layouts[i][1]] ==
                              1 - 0.5 * (s == 2 ? 1 : r + 2 * c));
                CHECK(opt_free(opt) == OPT_OK);
            }
}

static void moving_to_another_layout_keeps_the_state_in_its_places(void)
{
    const int64_t shape[] = {2, 2}, columns[] = {1, 2};
    double w[] = {0, 0, 0, 0}, dw[] = {1, 2, 3, 4}, zero[] = {0, 0, 0, 0};
    int opt = opt_create("SGD(lr=1, momentum=0.5)");
    CHECK(opt_bind_nd(opt, "w", "float64", "cpu", 2, shape, w, NULL, dw, NULL) == OPT_OK);
    CHECK(opt_step(opt) == OPT_OK);
    CHECK(opt_bind_nd(opt, "w", "float64", "cpu", 2, shape, w, columns, zero, columns) == OPT_OK);
    w[0] = w[1] = w[2] = w[3] = 0;
    CHECK(opt_step(opt) == OPT_OK);
    CHECK(w[0] == -0.5 && w[1] == -1.5 && w[2] == -1 && w[3] == -2);
    CHECK(opt_free(opt) == OPT_OK);
}

static void scalars_and_empty_arrays_are_parameters_too(void)
{
    const int64_t empty[] = {0, 5};
    double w = 1, dw = 2;
    int opt = opt_create("SGD(lr=0.5)");
    CHECK(opt_bind_nd(opt, "scalar", "float64", "cpu", 0, NULL, &w, NULL, &dw, NULL) == OPT_OK);
    CHECK(opt_bind_nd(opt, "empty", "float64", "cpu", 2, empty, NULL, NULL, NULL, NULL) == OPT_OK);
    CHECK(opt_step(opt) == OPT_OK);
    CHECK(w == 0);
    CHECK(opt_free(opt) == OPT_OK);
}

static void a_description_names_the_optimizer_its_options_and_its_parameters(void)
{
    double w[] = {1, 2}, dw[] = {0, 0};
    int opt = opt_create("SGD(lr=0.5, momentum=0.25)");
    CHECK(opt_bind(opt, "weights", "float64", 2, w, dw) == OPT_OK);
    const char *text = opt_describe(opt);
    CHECK(text && strstr(text, "SGD") && strstr(text, "momentum=0.25"));
    CHECK(strstr(text, "parameter 'weights': group 0, cpu, float64 of shape (2,) with strides (1,)"));
    CHECK(strstr(text, "step: torch.optim.SGD with fused kernels"));
    text = opt_describe(0);
    CHECK(text && strstr(text, "torch: ") && strstr(text, "python: ") && strstr(text, "library: /"));
    CHECK(opt_free(opt) == OPT_OK);
}

int main(void)
{
    CHECK(strcmp(opt_version(), OPTPLUG_VERSION) == 0);
    CHECK(strcmp(opt_error(), "") == 0 && strcmp(opt_traceback(), "") == 0 && opt_error_status() == 0);
    sgd_subtracts_the_learning_rate_times_the_gradient();
    maximize_adds_it();
    each_step_reads_the_gradient_that_is_there_then();
    several_parameters_of_several_dtypes_move_by_their_own_gradients();
    optimizers_are_independent();
    binding_again_moves_the_parameter_and_keeps_its_state();
    strided_arrays_are_stepped_without_touching_the_gaps();
    moving_to_another_layout_keeps_the_state_in_its_places();
    scalars_and_empty_arrays_are_parameters_too();
    a_description_names_the_optimizer_its_options_and_its_parameters();
    CHECK(strcmp(opt_error(), "") == 0);
    return 0;
}
