/* optplug, from C. */
#include <optplug.h>

#include "evaluations.h"

enum { MOST = 10000 };

static int opt, is_closure, is_loop, is_setting;
static float *data[MOST], *grad[MOST];
static int used;
static long length;
static int64_t rows = 1, row[1];

static void check(int status)
{
    if (status < 0) {
        fprintf(stderr, "%s\n%s\n", opt_error(), opt_traceback());
        exit(1);
    }
}

static int constant(void *user, double *value)
{
    (void)user;
    *value = 1;
    return 0;
}

static int create(const char *name)
{
    char spec[96];
    const char *arguments = getenv("BENCHMARK_ARGUMENTS");
    snprintf(spec, sizeof spec, "%s(lr=0.001%s)", name, arguments ? arguments : "");
    int made = opt_create(spec);
    check(made);
    return made;
}

static int setup(const char *name, int count, long size)
{
    if (getenv("BENCHMARK_OPTIONS"))
        check(opt_init(getenv("BENCHMARK_OPTIONS")));
    opt = create(name);
    is_closure = strcmp(name, "LBFGS") == 0;
    is_loop = strcmp(kind, "loop") == 0;
    is_setting = strcmp(kind, "set") == 0;
    if (count > MOST)
        return 0;
    used = count;
    length = size;
    for (int i = 0; i < count; i++) {
        char parameter[16];
        snprintf(parameter, sizeof parameter, "%d", i);
        data[i] = filled(size);
        grad[i] = filled(size);
        int64_t shape[] = {size / 10, 10};
        if (strcmp(name, "SparseAdam") == 0)
            check(opt_bind_sparse(opt, parameter, "float32", shape[0], 10, data[i], 1, &rows, row, grad[i]));
        else if (strcmp(name, "Muon") == 0)
            check(opt_bind_nd(opt, parameter, "float32", "cpu", 2, shape, data[i], NULL, grad[i], NULL));
        else
            check(opt_bind(opt, parameter, "float32", size, data[i], grad[i]));
    }
    if (is_loop) {
        check(opt_schedule(opt, "StepLR(1000, 0.99)"));
        check(opt_average(opt, "AveragedModel(multi_avg_fn=get_ema_multi_avg_fn(0.999))"));
    }
    for (int i = 0; i < 3; i++)
        step();
    return 1;
}

static void step(void)
{
    if (is_setting)
        check(opt_set_value(opt, -1, "lr", next_lr()));
    if (is_loop)
        check(opt_clip_grad_norm(opt, 0.5, 2, 0, NULL));
    check(is_closure ? opt_step_closure(opt, constant, NULL, NULL) : opt_step(opt));
    if (is_loop)
        check(opt_schedule_step(opt)); /* the average is a part of opt_step */
}

static void teardown(void)
{
    check(opt_free(opt));
    for (int i = 0; i < used; i++) {
        free(data[i]);
        free(grad[i]);
    }
}

/* ---- what else is measured ---- */

static float w[50], dw[50];

static int new_optimizer(void)
{
    int made = create("Adam");
    check(opt_bind(made, "w", "float32", 50, w, dw));
    return made;
}

static void live(void) { check(opt_free(new_optimizer())); }

static void life(void)
{
    int made = new_optimizer();
    for (int i = 0; i < 3; i++)
        check(opt_step(made));
    check(opt_free(made));
}

static double first_step(void)
{
    double spent = 0;
    int count = 0;
    for (double end = now() + 0.2; now() < end; count++) {
        int made = new_optimizer();
        double start = now();
        check(opt_step(made));
        spent += now() - start;
        check(opt_free(made));
    }
    return spent / count;
}

static int handles[MOST], handle_count;

static void step_all(void)
{
    for (int i = 0; i < handle_count; i++)
        check(opt_step(handles[i]));
}

static double time_of_handles(int count)
{
    handle_count = count < MOST ? count : MOST;
    for (int i = 0; i < handle_count; i++)
        handles[i] = new_optimizer();
    step_all();
    double seconds = time_of(step_all, 0.1) / handle_count;
    for (int i = 0; i < handle_count; i++)
        check(opt_free(handles[i]));
    return seconds;
}

static void save(void) { check(opt_save(opt, "optplug-benchmark.pt")); }

static double time_of_save(long size)
{
    setup("Adam", 1, size);
    double seconds = time_of(save, 0.2);
    teardown();
    remove("optplug-benchmark.pt");
    return seconds;
}

static int quadratic(void *user, double *value)
{
    (void)user;
    *value = evaluate();
    return 0;
}

static void begin_lbfgs(void)
{
    char spec[64];
    snprintf(spec, sizeof spec, "LBFGS(max_iter=%d, line_search_fn='strong_wolfe')",
             is_fresh ? FIRST_ITERATIONS : 20);
    check(opt = opt_create(spec));
    check(opt_bind(opt, "w", "float32", dimensions, point, slope));
}

static void step_lbfgs(void) { check(opt_step_closure(opt, quadratic, NULL, NULL)); }

static void free_lbfgs(void) { check(opt_free(opt)); }

/* ---- values ---- */

static FILE *open_values(void)
{
    FILE *file = fopen(getenv("BENCHMARK_VALUES"), "wb");
    if (!file) {
        perror(getenv("BENCHMARK_VALUES"));
        exit(1);
    }
    return file;
}

static void write_array(FILE *file, const float *array, long n)
{
    if (fwrite(array, sizeof(float), (size_t)n, file) != (size_t)n) {
        perror(getenv("BENCHMARK_VALUES"));
        exit(1);
    }
}

static void write_values(long steps)
{
    for (long i = 0; i < steps; i++)
        step();
    FILE *file = open_values();
    for (int i = 0; i < used; i++)
        write_array(file, data[i], length);
    for (int i = 0; is_loop && i < used; i++) {
        char parameter[16];
        snprintf(parameter, sizeof parameter, "%d", i);
        float *average = filled(length);
        check(opt_average_get(opt, parameter, average));
        write_array(file, average, length);
        free(average);
    }
    fclose(file);
}

static double time_lbfgs(long n)
{
    double seconds = time_evaluations(n, begin_lbfgs, step_lbfgs, free_lbfgs);
    FILE *file = open_values();
    write_array(file, point, n);
    fclose(file);
    free(point);
    free(slope);
    return seconds;
}

/* Seconds, of these: "live": create, bind and free; "first": the first step; "life": create, bind,
 * three steps and free; "handles N": a step of each of N
 * optimizers, for one of them; "save N": write the state of Adam for N values to the disk; "evaluations N"
 * and, of the first step, "fresh N": see evaluations.h.  Besides, "values N" makes N steps; it, "evaluations"
 * and "fresh" write the parameters, and the averages of a loop, to the file that BENCHMARK_VALUES names. */
static double extra(const char *command, long argument)
{
    if (strcmp(command, "live") == 0)
        return time_of(live, 0.2);
    if (strcmp(command, "first") == 0)
        return first_step();
    if (strcmp(command, "life") == 0)
        return time_of(life, 0.2);
    if (strcmp(command, "handles") == 0)
        return time_of_handles((int)argument);
    if (strcmp(command, "save") == 0)
        return time_of_save(argument);
    is_fresh = strcmp(command, "fresh") == 0;
    if (is_fresh || strcmp(command, "evaluations") == 0)
        return time_lbfgs(argument);
    write_values(argument);
    return 0;
}
