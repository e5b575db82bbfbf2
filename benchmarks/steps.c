/* optplug, from C. */
#include <optplug.h>

#include "server.h"

enum { MOST = 10000 };

static int opt, is_closure;
static float *data[MOST], *grad[MOST];
static int used;
static int64_t rows = 1, row[1];

static void check(int status)
{
    if (status < 0) {
        fprintf(stderr, "%s\n%s\n", opt_error(), opt_traceback());
        exit(1);
    }
}

static int loss(void *user, double *value)
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
    if (count > MOST)
        return 0;
    used = count;
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
    for (int i = 0; i < 3; i++)
        step();
    return 1;
}

static void step(void) { check(is_closure ? opt_step_closure(opt, loss, NULL, NULL) : opt_step(opt)); }

static void teardown(void)
{
    check(opt_free(opt));
    for (int i = 0; i < used; i++) {
        free(data[i]);
        free(grad[i]);
    }
}

static int handles[MOST], handle_count;

static void step_all(void)
{
    for (int i = 0; i < handle_count; i++)
        check(opt_step(handles[i]));
}

static void live(void)
{
    static float w[50], dw[50];
    int made = create("Adam");
    check(opt_bind(made, "w", "float32", 50, w, dw));
    check(opt_free(made));
}

static void save(void) { check(opt_save(opt, "optplug-benchmark.pt")); }

/* "live": create, bind and free; "handles N": a step of each of N optimizers, for one of them;
 * "save N": write the state of Adam for N values to the disk. */
static double extra(const char *command, long argument)
{
    static float w[50], dw[50];
    if (strcmp(command, "live") == 0)
        return time_of(live, 0.2);
    if (strcmp(command, "save") == 0) {
        setup("Adam", 1, argument);
        double seconds = time_of(save, 0.2);
        teardown();
        remove("optplug-benchmark.pt");
        return seconds;
    }
    handle_count = argument < MOST ? (int)argument : MOST;
    for (int i = 0; i < handle_count; i++) {
        handles[i] = create("Adam");
        check(opt_bind(handles[i], "w", "float32", 50, w, dw));
    }
    step_all();
    double seconds = time_of(step_all, 0.1) / handle_count;
    for (int i = 0; i < handle_count; i++)
        check(opt_free(handles[i]));
    return seconds;
}
