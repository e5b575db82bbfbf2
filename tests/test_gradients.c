/* Zeroing, clipping and checking gradients, sparse ones too. */
#include <math.h>

#include "check.h"

static double a[] = {1}, da[] = {3}, b[2], db[] = {0, 4};

static int bound(const char *spec)
{
    int opt = opt_create(spec);
    CHECK(opt > 0);
    CHECK(opt_bind(opt, "a", "float64", 1, a, da) == OPT_OK);
    CHECK(opt_bind(opt, "b", "float64", 2, b, db) == OPT_OK);
    return opt;
}

static void clipping_scales_all_gradients_together(void)
{
    int opt = bound("SGD(lr=1)");
    double norm = 0;
    CHECK(opt_clip_grad_norm(opt, 10, 2, 0, &norm) == OPT_OK && norm == 5);
    CHECK(da[0] == 3 && db[1] == 4);
    CHECK(opt_clip_grad_norm(opt, 2.5, 2, 0, NULL) == OPT_OK);
    CHECK(fabs(da[0] - 1.5) < 1e-6 && fabs(db[1] - 2) < 1e-6);
    CHECK(opt_clip_grad_norm(opt, 10, 1, 0, &norm) == OPT_OK && fabs(norm - 3.5) < 1e-5);
    CHECK(opt_clip_grad_norm(opt, 10, INFINITY, 0, &norm) == OPT_OK && fabs(norm - 2) < 1e-5);
    CHECK(opt_clip_grad_value(opt, 0.5) == OPT_OK);
    CHECK(da[0] == 0.5 && db[0] == 0 && db[1] == 0.5);
    CHECK_FAILS(OPT_EINVAL, "max_norm must be a number from 0, got -1.0",
                opt_clip_grad_norm(opt, -1, 2, 0, &norm));
    CHECK_FAILS(OPT_EINVAL, "norm_type must be a number, got nan", opt_clip_grad_norm(opt, 1, NAN, 0, &norm));
    CHECK_FAILS(OPT_EINVAL, "clip_value must be a number from 0, got -0.5", opt_clip_grad_value(opt, -0.5));
    CHECK(opt_zero_grad(opt) == OPT_OK);
    CHECK(da[0] == 0 && db[0] == 0 && db[1] == 0);
    CHECK(opt_free(opt) == OPT_OK);
}

static void scaled_gradients_are_divided_or_left_out(void)
{
    float x[2] = {0, 0}, dx[2], scale = 4, found_inf = 0;
    int opt = opt_create("SGD(lr=1, momentum=0.5)");
    CHECK(opt > 0);
    CHECK_FAILS(OPT_ESTATE, "nothing is bound", opt_grad_scale(opt, &scale, &found_inf));
    CHECK(opt_bind(opt, "x", "float32", 2, x, dx) == OPT_OK);
    CHECK(opt_grad_scale(opt, &scale, &found_inf) == OPT_OK);
    /* by hand: the momentum is 1, 1.5, 1.75, 1.875 times 1 and 2 */
    const float expected[] = {0, -1, -1, -2.5f, -4.25f, -4.25f, -6.125f};
    for (int i = 0; i < 7; i++) {
        dx[0] = 4, dx[1] = 8;
        found_inf = i == 0 || i == 2 || i == 5;
        CHECK(opt_step(opt) == OPT_OK && x[0] == expected[i] && x[1] == 2 * expected[i]);
    }
    CHECK(opt_grad_scale(opt, NULL, NULL) == OPT_OK);
    dx[0] = dx[1] = -1.875f * 0.5f; /* less the momentum of before, for x[0] */
    CHECK(opt_step(opt) == OPT_OK && x[0] == -6.125f);
    CHECK(opt_stream(opt, NULL) == OPT_OK);
    CHECK_FAILS(OPT_ESTATE, "no parameter is on a GPU, bind one first", opt_stream(opt, x));
    CHECK(opt_free(opt) == OPT_OK);
}

/* Steps of 2 to the -12, which bfloat16 numbers of 1 cannot take one by one. */
static void small_steps_are_not_lost_with_master_copies(void)
{
    CHECK(opt_init("master_weights=True") == OPT_OK);
    uint16_t x[1], dx[1] = {0x3F80}; /* 1 */
    int opt = opt_create("SGD(lr=0.000244140625)");
    CHECK(opt > 0 && opt_init("master_weights=False") == OPT_OK);
    CHECK(opt_bind(opt, "x", "bfloat16", 1, x, dx) == OPT_OK);
    x[0] = 0x3F80; /* as late as that */
    for (int i = 0; i < 64; i++)
        CHECK(opt_step(opt) == OPT_OK);
    CHECK(x[0] == 0x3F7C); /* 1 - 1 / 64 */
    CHECK(opt_free(opt) == OPT_OK);
}

static void gradients_that_are_not_finite_can_be_refused(void)
{
    int plain = bound("SGD(lr=1)");
    CHECK(opt_init("error_if_nonfinite=True") == OPT_OK);
    int careful = bound("SGD(lr=1)");
    CHECK(opt_init("error_if_nonfinite=False") == OPT_OK);
    const double bad[] = {NAN, INFINITY, -INFINITY};
    for (int i = 0; i < 3; i++) {
        double norm = 7;
        a[0] = b[0] = b[1] = 1, da[0] = 1, db[0] = 1, db[1] = bad[i];
        CHECK_FAILS(OPT_ENONFINITE, "the gradient of parameter 'b' contains inf or nan", opt_step(careful));
        CHECK_FAILS(OPT_ENONFINITE, "is non-finite", opt_clip_grad_norm(plain, 0.5, 2, 1, &norm));
        CHECK(a[0] == 1 && b[0] == 1 && b[1] == 1 && da[0] == 1 && db[0] == 1 && norm == 7);
        CHECK(opt_step(plain) == OPT_OK);
        CHECK(a[0] == 0 && b[0] == 0 && !isfinite(b[1]));
    }
    db[1] = 1;
    CHECK(opt_step(careful) == OPT_OK);
    db[0] = db[1] = 1e308; /* whose sum is none, though they are */
    CHECK(opt_step(careful) == OPT_OK && isfinite(b[0]) && b[0] < -1e307);
    CHECK(opt_free(plain) == OPT_OK && opt_free(careful) == OPT_OK);
}

static double table[4][2], rows[3][2] = {{1, 2}, {3, 4}, {10, 20}};
static int64_t indices[] = {2, 0, 2}, count;

static int sparse(const char *spec)
{
    int opt = opt_create(spec);
    CHECK(opt > 0);
    CHECK(opt_bind_sparse(opt, "table", "float64", 4, 2, table, 3, &count, indices, rows) == OPT_OK);
    memset(table, 0, sizeof table);
    return opt;
}

static void sparse_rows_are_added_up_and_stepped(void)
{
    int opt = sparse("SGD(lr=0.5)");
    count = 2;
    CHECK(opt_step(opt) == OPT_OK);
    const double two[4][2] = {{-1.5, -2}, {0, 0}, {-0.5, -1}, {0, 0}};
    CHECK(memcmp(table, two, sizeof two) == 0);
    count = 3; /* row 2 twice */
    CHECK(opt_step(opt) == OPT_OK);
    const double three[4][2] = {{-3, -4}, {0, 0}, {-6, -12}, {0, 0}};
    CHECK(memcmp(table, three, sizeof three) == 0);
    count = 0;
    CHECK(opt_step(opt) == OPT_OK);
    CHECK(memcmp(table, three, sizeof three) == 0);
    CHECK(strstr(opt_describe(opt), "up to 3 sparse rows"));
    CHECK(opt_free(opt) == OPT_OK);
}

static void sparse_adam_moves_only_the_rows_that_are_there(void)
{
    int opt = sparse("SparseAdam(lr=0.5, eps=1e-30)");
    count = 1;
    CHECK(opt_step(opt) == OPT_OK); /* Adam's first step is lr times the sign, nearly */
    CHECK(fabs(table[2][0] + 0.5) < 1e-9 && fabs(table[2][1] + 0.5) < 1e-9);
    CHECK(table[0][0] == 0 && table[1][0] == 0 && table[3][1] == 0);
    CHECK(opt_free(opt) == OPT_OK);
}

static void a_sparse_parameter_can_be_moved(void)
{
    double moved[4][2] = {{0}}, more[3][2] = {{1, 1}};
    int opt = sparse("SGD(lr=0.5, momentum=0.5)");
    count = 1;
    CHECK(opt_step(opt) == OPT_OK && table[2][0] == -0.5);
    CHECK(opt_bind_sparse(opt, "table", "float64", 4, 2, moved, 3, &count, indices, more) == OPT_OK);
    CHECK(opt_step(opt) == OPT_OK);
    CHECK(moved[2][0] == -0.75 && moved[2][1] == -1 && table[2][0] == -0.5);
    CHECK(opt_free(opt) == OPT_OK);
}

/* What torch would find out in the middle of a step is found out when the parameter is bound. */
static void a_kind_of_gradient_that_torch_refuses_is_refused_at_bind(void)
{
    int opt = opt_create("Adam()");
    CHECK(opt_bind(opt, "a", "float64", 1, a, da) == OPT_OK);
    CHECK_FAILS(OPT_EINVAL,
                "parameter 'table': Adam does not support sparse gradients, please consider SparseAdam "
                "instead: bind it with opt_bind",
                opt_bind_sparse(opt, "table", "float64", 4, 2, table, 3, &count, indices, rows));
    CHECK(opt_step(opt) == OPT_OK);
    CHECK(opt_free(opt) == OPT_OK);
    opt = opt_create("SparseAdam()");
    CHECK_FAILS(
        OPT_EINVAL,
        "parameter 'a': SparseAdam does not support dense gradients, please consider Adam instead: bind it "
        "with opt_bind_sparse",
        opt_bind(opt, "a", "float64", 1, a, da));
    CHECK(opt_free(opt) == OPT_OK);
}

static void sparse_mistakes_are_errors(void)
{
    int opt = sparse("SGD(lr=0.5)");
    count = 4;
    CHECK_FAILS(OPT_EINVAL, "count of parameter 'table' must be 0 to 3, got 4", opt_step(opt));
    count = -1;
    CHECK_FAILS(OPT_EINVAL, "must be 0 to 3, got -1", opt_step(opt));
    count = 3, indices[1] = 4;
    CHECK_FAILS(OPT_EINVAL, "indices of parameter 'table' must be 0 to 3, got 4", opt_step(opt));
    indices[1] = -1;
    CHECK_FAILS(OPT_EINVAL, "must be 0 to 3, got -1", opt_step(opt));
    indices[1] = 0;
    CHECK(table[0][0] == 0 && table[2][0] == 0);
    double norm = 0;
    CHECK(opt_clip_grad_norm(opt, 5, INFINITY, 0, &norm) == OPT_OK && norm == 20);
    CHECK(fabs(rows[2][1] - 5) < 1e-5 && fabs(rows[0][0] - 0.25) < 1e-6);
    count = 0;
    CHECK(opt_clip_grad_norm(opt, 5, INFINITY, 0, &norm) == OPT_OK && norm == 0);
    count = 4;
    CHECK_FAILS(OPT_EINVAL, "must be 0 to 3, got 4", opt_zero_grad(opt));
    CHECK(rows[0][0] != 0);
    count = 3;
    CHECK(opt_zero_grad(opt) == OPT_OK && rows[0][0] == 0 && rows[2][1] == 0);
    CHECK_FAILS(OPT_EINVAL, "rows must be positive, got 0",
                opt_bind_sparse(opt, "t", "float64", 0, 2, table, 3, &count, indices, rows));
    CHECK_FAILS(OPT_EINVAL, "columns must be positive, got -2",
                opt_bind_sparse(opt, "t", "float64", 4, -2, table, 3, &count, indices, rows));
    CHECK_FAILS(OPT_EINVAL, "capacity must be positive, got 0",
                opt_bind_sparse(opt, "t", "float64", 4, 2, table, 0, &count, indices, rows));
    CHECK_FAILS(OPT_EINVAL, "name must not be NULL",
                opt_bind_sparse(opt, NULL, "float64", 4, 2, table, 3, &count, indices, rows));
    CHECK_FAILS(OPT_EINVAL, "dtype must not be NULL",
                opt_bind_sparse(opt, "t", NULL, 4, 2, table, 3, &count, indices, rows));
    CHECK_FAILS(OPT_EINVAL, "data must not be NULL",
                opt_bind_sparse(opt, "t", "float64", 4, 2, NULL, 3, &count, indices, rows));
    CHECK_FAILS(OPT_EINVAL, "count must not be NULL",
                opt_bind_sparse(opt, "t", "float64", 4, 2, table, 3, NULL, indices, rows));
    CHECK_FAILS(OPT_EINVAL, "indices must not be NULL",
                opt_bind_sparse(opt, "t", "float64", 4, 2, table, 3, &count, NULL, rows));
    CHECK_FAILS(OPT_EINVAL, "grad_rows must not be NULL",
                opt_bind_sparse(opt, "t", "float64", 4, 2, table, 3, &count, indices, NULL));
    CHECK(opt_free(opt) == OPT_OK);
}

/* State and options that were tried with one kind need not go with the other. */
static void the_kind_of_gradient_stays_after_a_step(void)
{
    const int64_t shape[] = {2, 1};
    double t[2] = {0}, dt[2] = {1, 1};
    int64_t rows = 1, row[] = {1};
    int opt = opt_create("SGD(lr=0.1, momentum=0.9)");
    CHECK(opt > 0 && opt_bind(opt, "a", "float64", 1, a, da) == OPT_OK);
    CHECK(opt_bind_nd(opt, "t", "float64", "cpu", 2, shape, t, NULL, dt, NULL) == OPT_OK);
    CHECK(opt_bind_sparse(opt, "t", "float64", 2, 1, t, 1, &rows, row, dt) ==
          OPT_OK); /* before: as you like */
    CHECK(opt_step(opt) == OPT_OK && t[0] == 0 && t[1] != 0);
    CHECK_FAILS(OPT_EINVAL, "name 't' is bound with a sparse gradient, got a dense one",
                opt_bind_nd(opt, "t", "float64", "cpu", 2, shape, t, NULL, dt, NULL));
    CHECK(opt_step(opt) == OPT_OK && opt_free(opt) == OPT_OK);
    opt = opt_create("SGD(lr=0.1, weight_decay=0.1)");
    CHECK(opt > 0 && opt_bind_nd(opt, "t", "float64", "cpu", 2, shape, t, NULL, dt, NULL) == OPT_OK);
    CHECK_FAILS(OPT_EINVAL,
                "parameter 't': ", opt_bind_sparse(opt, "t", "float64", 2, 1, t, 1, &rows, row, dt));
    CHECK(opt_step(opt) == OPT_OK && opt_free(opt) == OPT_OK);
    /* torch steps with the first of them, and cannot add the second to it. */
    uint16_t h[2] = {0}, dh[2] = {0};
    opt = opt_create("SGD(lr=0.1, momentum=0.9)");
    CHECK(opt > 0);
    CHECK_FAILS(OPT_EINVAL, "not implemented for 'Half'",
                opt_bind_sparse(opt, "h", "float16", 2, 1, h, 1, &rows, row, dh));
    CHECK(opt_bind(opt, "a", "float64", 1, a, da) == OPT_OK && opt_step(opt) == OPT_OK);
    CHECK(opt_free(opt) == OPT_OK);
}

int main(void)
{
    int quiet = check_quiet();
    clipping_scales_all_gradients_together();
    scaled_gradients_are_divided_or_left_out();
    small_steps_are_not_lost_with_master_copies();
    gradients_that_are_not_finite_can_be_refused();
    sparse_rows_are_added_up_and_stepped();
    sparse_adam_moves_only_the_rows_that_are_there();
    a_sparse_parameter_can_be_moved();
    a_kind_of_gradient_that_torch_refuses_is_refused_at_bind();
    the_kind_of_gradient_stays_after_a_step();
    sparse_mistakes_are_errors();
    check_was_quiet(quiet);
    return 0;
}
