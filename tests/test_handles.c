/* Handles: forged, stale, freed under a running step, shared; and a great many of them, in little memory. */
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>

#include "check.h"

static double w[2], dw[2];

static int make(void)
{
    int opt = opt_create("SGD(lr=1)");
    CHECK(opt > 0 && opt_bind(opt, "w", "float64", 2, w, dw) == OPT_OK);
    return opt;
}

static int loss(void *user, double *value)
{
    (void)user;
    *value = 0;
    return 0;
}

/* Every function that takes a handle. */
static void check_is_none(int opt)
{
    const int64_t two[] = {2};
    int64_t rows = 1, row[] = {0};
    double value;
    CHECK_FAILS(OPT_EHANDLE, "is not an optimizer", opt_step(opt));
    CHECK_FAILS(OPT_EHANDLE, "is not an optimizer", opt_step_f64(opt, w, dw));
    CHECK_FAILS(OPT_EHANDLE, "is not an optimizer", opt_step_f32(opt, (float *)w, (float *)dw));
    CHECK_FAILS(OPT_EHANDLE, "is not an optimizer", opt_free(opt));
    CHECK_FAILS(OPT_EHANDLE, "is not an optimizer", opt_bind(opt, "w", "float64", 2, w, dw));
    CHECK_FAILS(OPT_EHANDLE, "is not an optimizer",
                opt_bind_nd(opt, "w", "float64", "cpu", 1, two, w, NULL, dw, NULL));
    CHECK_FAILS(OPT_EHANDLE, "is not an optimizer",
                opt_bind_sparse(opt, "w", "float64", 1, 2, w, 1, &rows, row, dw));
    CHECK_FAILS(OPT_EHANDLE, "is not an optimizer", opt_group(opt, "lr=1"));
    CHECK_FAILS(OPT_EHANDLE, "is not an optimizer", opt_set(opt, -1, "lr=1"));
    CHECK_FAILS(OPT_EHANDLE, "is not an optimizer", opt_set_value(opt, -1, "lr", 1));
    CHECK_FAILS(OPT_EHANDLE, "is not an optimizer", opt_get(opt, 0, "lr", &value));
    CHECK_FAILS(OPT_EHANDLE, "is not an optimizer", opt_zero_grad(opt));
    CHECK_FAILS(OPT_EHANDLE, "is not an optimizer", opt_clip_grad_norm(opt, 1, 2, 0, NULL));
    CHECK_FAILS(OPT_EHANDLE, "is not an optimizer", opt_clip_grad_value(opt, 1));
    CHECK_FAILS(OPT_EHANDLE, "is not an optimizer", opt_schedule(opt, "StepLR(1)"));
    CHECK_FAILS(OPT_EHANDLE, "is not an optimizer", opt_schedule_callback(opt, "LambdaLR()", loss, NULL));
    CHECK_FAILS(OPT_EHANDLE, "is not an optimizer", opt_schedule_step(opt));
    CHECK_FAILS(OPT_EHANDLE, "is not an optimizer", opt_schedule_step_metric(opt, 1));
    CHECK_FAILS(OPT_EHANDLE, "is not an optimizer", opt_step_closure(opt, loss, NULL, NULL));
    CHECK_FAILS(OPT_EHANDLE, "is not an optimizer", opt_iterate(opt, 0));
    CHECK_FAILS(OPT_EHANDLE, "is not an optimizer", opt_stream(opt, NULL));
    CHECK_FAILS(OPT_EHANDLE, "is not an optimizer", opt_grad_scale(opt, NULL, NULL));
    CHECK_FAILS(OPT_EHANDLE, "is not an optimizer", opt_average(opt, "AveragedModel()"));
    CHECK_FAILS(OPT_EHANDLE, "is not an optimizer", opt_average_get(opt, "w", w));
    CHECK_FAILS(OPT_EHANDLE, "is not an optimizer", opt_average_swap(opt));
    CHECK_FAILS(OPT_EHANDLE, "is not an optimizer", opt_call(opt, "eval"));
    CHECK_FAILS(OPT_EHANDLE, "is not an optimizer", opt_checkpoint(opt, "parameters=True"));
    CHECK_FAILS(OPT_EHANDLE, "is not an optimizer", opt_attribute(opt, "name", "text"));
    CHECK(opt_attribute_get(opt, "name") == NULL && opt_error_status() == OPT_EHANDLE);
    CHECK_FAILS(OPT_EHANDLE, "is not an optimizer", opt_save(opt, "/tmp"));
    CHECK_FAILS(OPT_EHANDLE, "is not an optimizer", opt_load(opt, "/tmp"));
    CHECK_FAILS(OPT_EHANDLE, "is not an optimizer", (int)opt_save_memory(opt, NULL, 0));
    CHECK_FAILS(OPT_EHANDLE, "is not an optimizer", opt_load_memory(opt, "x", 1));
    CHECK_FAILS(OPT_EHANDLE, "is not an optimizer", opt ? opt_describe(opt) ? 0 : OPT_EHANDLE : opt_step(0));
}

static void a_forged_handle_is_an_error(void)
{
    int opt = make();
    const int forged[] = {INT_MIN,        INT_MIN + 1,   -1,      0,           1,      2, 0xFFFF,
                          0x10000 + 1000, opt + 0x10000, opt ^ 1, INT_MAX - 1, INT_MAX};
    for (size_t i = 0; i < sizeof forged / sizeof *forged; i++)
        check_is_none(forged[i]);
    CHECK(opt_step(opt) == OPT_OK && opt_free(opt) == OPT_OK);
}

static void a_stale_handle_is_an_error(void)
{
    int opt = make();
    CHECK(opt_free(opt) == OPT_OK);
    check_is_none(opt);
    int next = make(); /* takes the place of the one before, under another number */
    CHECK(next != opt);
    check_is_none(opt);
    CHECK(opt_step(next) == OPT_OK && opt_free(next) == OPT_OK);
}

/* ---- from many threads ---- */

enum { THREADS = 8, ROUNDS = 80 };

static _Atomic int shared, stepped, ends;

static void *step_until_it_ends(void *unused)
{
    for (int opt = shared;;) {
        int status = opt_step(opt);
        if (status == OPT_OK) {
            stepped = 1;
            continue;
        }
        CHECK_FAILS(OPT_EHANDLE, "is not an optimizer", opt_step(opt));
        ends++;
        return unused;
    }
}

/* Freed once, by any one of many, in the middle of the others' steps. */
static void *free_it(void *freed)
{
    while (!stepped)
        usleep(100);
    if (opt_free(shared) == OPT_OK)
        ++*(_Atomic int *)freed;
    return NULL;
}

static void free_during_a_step_ends_it_once(void)
{
    for (int round = 0; round < ROUNDS / 4; round++) {
        pthread_t threads[THREADS];
        _Atomic int freed = 0;
        ends = stepped = 0;
        shared = make();
        for (int i = 0; i < THREADS; i++)
            CHECK(pthread_create(&threads[i], NULL, i < 3 ? free_it : step_until_it_ends, &freed) == 0);
        for (int i = 0; i < THREADS; i++)
            CHECK(pthread_join(threads[i], NULL) == 0);
        CHECK(freed == 1 && ends == THREADS - 3);
    }
}

static void *live_and_die(void *unused)
{
    double v[1] = {0}, dv[1] = {-1};
    for (int i = 0; i < ROUNDS; i++) {
        int opt = opt_create("SGD(lr=1)");
        CHECK(opt > 0 && opt_bind(opt, "v", "float64", 1, v, dv) == OPT_OK);
        CHECK(opt_step(opt) == OPT_OK && opt_free(opt) == OPT_OK);
    }
    CHECK(v[0] == ROUNDS); /* each thread's handles were its own */
    return unused;
}

static void threads_make_handles_side_by_side(void)
{
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++)
        CHECK(pthread_create(&threads[i], NULL, live_and_die, NULL) == 0);
    for (int i = 0; i < THREADS; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
}

/* ---- a great many ---- */

static long resident_kilobytes(void)
{
    long pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    if (!file)
        return 0; /* no Linux: memory is not looked at */
    CHECK(fscanf(file, "%*d %ld", &pages) == 1);
    fclose(file);
    return pages * (sysconf(_SC_PAGESIZE) / 1024);
}

static void cycle(long count)
{
    for (long i = 0; i < count; i++) {
        int opt = make();
        if (i % 10 == 0)
            CHECK(opt_step(opt) == OPT_OK);
        CHECK(opt_free(opt) == OPT_OK);
    }
}

/* OPTPLUG_TEST_CYCLES=1000000 does as many. */
static void cycles_leave_no_memory_behind(void)
{
    const char *wish = getenv("OPTPLUG_TEST_CYCLES");
    long cycles = wish ? atol(wish) : 8000;
    cycle(cycles / 10);
    long before = resident_kilobytes();
    cycle(cycles);
    long grown = resident_kilobytes() - before;
    printf("%ld optimizers later: %ld KiB more\n", cycles, grown);
    CHECK(grown < (wish ? 1024 : 400) || CHECK_SANITIZED); /* of 8000 optimizers 51 bytes each */
}

static void live_handles_are_many(void)
{
    enum { LIVE = 2000 };
    static int all[LIVE];
    static double v[LIVE], dv[LIVE];
    for (int i = 0; i < LIVE; i++) {
        dv[i] = -i;
        all[i] = opt_create("SGD(lr=1)");
        CHECK(all[i] > 0 && opt_bind(all[i], "v", "float64", 1, &v[i], &dv[i]) == OPT_OK);
    }
    for (int i = 0; i < LIVE; i++)
        CHECK(opt_step(all[i]) == OPT_OK && v[i] == i);
    for (int i = 0; i < LIVE; i++)
        CHECK(opt_free(all[i]) == OPT_OK);
}

int main(void)
{
    cycles_leave_no_memory_behind(); /* first: what the others give back would hide it */
    a_forged_handle_is_an_error();
    a_stale_handle_is_an_error();
    free_during_a_step_ends_it_once();
    threads_make_handles_side_by_side();
    live_handles_are_many();
    return 0;
}
