/* The host is left as it was by every call, whatever it has set before: its arithmetic, its locale, its
 * signals, its threads, its files.  A table of calls, made by hosts of several kinds. */
#include "guest.h"

/* ---- the calls ---- */

enum { MANY = 1 << 20 }; /* enough for torch to want several threads */

static float w[MANY], dw[MANY];
static double v[4], dv[4], average[4];
static int64_t rows = 1, row[1];
static const float scale = 2, found_inf = 0;
static int adam, sgd, lbfgs, sparse, rmsprop, pending, lent;

static int closure(void *user, double *value)
{
    (void)user;
    int found = errno;
    CHECK(found == 42);
    srand(42);
    check_same();
    srand(42);
    *value = 1;
    errno = 42;
    return 0;
}

static int refuse(void *user, double *value)
{
    closure(user, value);
    return -99;
}

static int factor(void *user, double *value)
{
    closure(user, value);
    return 0;
}

static int ok(const char *text) { return text ? OPT_OK : OPT_ERUNTIME; }

static int bind_v(int opt) { return opt_bind(opt, "v", "float64", 4, v, dv); }

static int bind_nd(void)
{
    const int64_t shape[] = {2, 2}, strides[] = {1, 2};
    return opt_bind_nd(rmsprop, "v", "float64", "cpu", 2, shape, v, strides, dv, NULL);
}

static int bind_unaligned(void) { return opt_bind(rmsprop, "u", "float64", 2, (char *)v + 1, dv); }

static int get(void)
{
    double value;
    return opt_get(adam, 0, "lr", &value);
}

static int get_wrong(void)
{
    double value;
    return opt_get(adam, 0, "rl", &value);
}

static int clip(void)
{
    double norm;
    return opt_clip_grad_norm(adam, 1, 2, 0, &norm);
}

static int clip_wrong(void) { return opt_clip_grad_norm(adam, -1, 2, 0, NULL); }

static int bind_sparse(void) { return opt_bind_sparse(sparse, "v", "float64", 2, 2, v, 1, &rows, row, dv); }

static char checkpoint[1 << 16];
static int64_t checkpoint_size;

static int save_memory(void)
{
    checkpoint_size = opt_save_memory(rmsprop, checkpoint, sizeof checkpoint);
    return checkpoint_size > 0 ? OPT_OK : OPT_ERUNTIME;
}

static int load_memory(void) { return opt_load_memory(rmsprop, checkpoint, checkpoint_size); }

static int save_and_load(void)
{
    char path[] = "/tmp/optplug-guest-XXXXXX";
    int file = mkstemp(path);
    int status = opt_save(rmsprop, path);
    if (status == OPT_OK)
        status = opt_load(rmsprop, path);
    CHECK(unlink(path) == 0 && close(file) == 0);
    errno = 42;
    return status;
}

static int step_overflow(void)
{
    for (int i = 0; i < MANY; i++)
        dw[i] = 1e30f; /* whose square is no float: an overflow in torch's workers */
    return opt_step(adam);
}

static int step_denormal(void)
{
    for (int i = 0; i < MANY; i++)
        dw[i] = 1e-40f;
    return opt_step(adam);
}

static int step_nothing(void)
{
    memset(dw, 0, sizeof dw);
    return opt_step(adam); /* 0 / (0 + eps) */
}

#define DEFINE(name, call)                                                                                   \
    static int name(void) { return call; }
static void ignore_line(void *user, int level, const char *line) { (void)user, (void)level, (void)line; }
DEFINE(init, opt_init(NULL))
DEFINE(init_wrong, opt_init("num_threads=0"))
DEFINE(create, (adam = opt_create("Adam(lr=0.1)")))
DEFINE(create_sgd, (sgd = opt_create("SGD(lr=0.1)")))
DEFINE(create_lbfgs, (lbfgs = opt_create("LBFGS(lr=1.5e-3)")))
DEFINE(create_sparse, (sparse = opt_create("SparseAdam()")))
DEFINE(create_rmsprop, (rmsprop = opt_create("RMSprop()")))
DEFINE(create_pending, (pending = opt_create("SGD(lr=1e-3)")))
DEFINE(create_wrong, opt_create("Adm()"))
DEFINE(create_negative, opt_create("Adam(lr=-1e-3)"))
DEFINE(create_null, opt_create(NULL))
DEFINE(bind_w, opt_bind(adam, "w", "float32", MANY, w, dw))
DEFINE(bind_sgd, opt_bind(sgd, "w", "float32", MANY, w, dw))
DEFINE(bind_lbfgs, bind_v(lbfgs))
DEFINE(bind_pending, bind_v(pending))
DEFINE(bind_wrong, opt_bind(adam, "x", "float33", 4, v, dv))
DEFINE(group, opt_group(rmsprop, "lr=2.5e-3"))
DEFINE(group_wrong, opt_group(rmsprop, "rl=2"))
DEFINE(step, opt_step(adam))
DEFINE(step_sgd, opt_step(sgd))
DEFINE(step_sparse, opt_step(sparse))
DEFINE(step_rmsprop, opt_step(rmsprop))
DEFINE(create_lent, (lent = opt_create("SGD(lr=0.1)")))
DEFINE(bind_lent, opt_bind(lent, "w", "float64", 4, NULL, NULL))
DEFINE(step_lent, opt_step_f64(lent, v, dv))
DEFINE(step_lent_wrong, opt_step_f32(lent, w, dw))
DEFINE(free_lent, opt_free(lent))
DEFINE(step_lbfgs, opt_step_closure(lbfgs, closure, NULL, NULL))
DEFINE(step_failing, opt_step_closure(lbfgs, refuse, NULL, NULL))
DEFINE(step_wrong, opt_step(7))
DEFINE(step_without_closure, opt_step(lbfgs))
DEFINE(check_gradient, opt_check_gradient(lbfgs, closure, NULL, NULL))
DEFINE(check_again, opt_check_gradient_iterate(pending, 0, NULL))
DEFINE(check_nothing, opt_check_gradient_iterate(pending, NAN, NULL))
DEFINE(iterate, opt_iterate(pending, 0))
DEFINE(iterate_again, opt_iterate(pending, 1))
DEFINE(set, opt_set(adam, -1, "lr=2e-3"))
DEFINE(set_wrong, opt_set(adam, -1, "lr=-1"))
DEFINE(set_value, opt_set_value(adam, -1, "lr", 2e-3))
DEFINE(set_value_wrong, opt_set_value(adam, -1, "lr", -1))
DEFINE(zero, opt_zero_grad(adam))
DEFINE(clip_value, opt_clip_grad_value(adam, 0.5))
DEFINE(schedule, opt_schedule(adam, "StepLR(2, gamma=0.5)"))
DEFINE(schedule_wrong, opt_schedule(adam, "StepLR()"))
DEFINE(schedule_callback, opt_schedule_callback(sgd, "LambdaLR()", factor, NULL))
DEFINE(distribute_wrong, opt_distribute(adam, "Shard(1)", NULL, NULL, 0, 1))
DEFINE(bind_block_wrong, opt_bind_block(adam, "x", 1, &rows, &rows, NULL))
DEFINE(schedule_step, opt_schedule_step(sgd))
DEFINE(schedule_metric, opt_schedule_step_metric(adam, 1))
DEFINE(stream, opt_stream(adam, NULL))
DEFINE(stream_wrong, opt_stream(adam, w))
DEFINE(grad_scale, opt_grad_scale(adam, &scale, &found_inf))
DEFINE(grad_scale_sgd, opt_grad_scale(sgd, &scale, &found_inf))
DEFINE(grad_scale_wrong, opt_grad_scale(adam, (const char *)&scale + 1, NULL))
DEFINE(grad_scale_none, opt_grad_scale(adam, NULL, NULL))
DEFINE(average_on, opt_average(rmsprop, "AveragedModel()"))
DEFINE(average_wrong, opt_average(rmsprop, "AveragedModl()"))
DEFINE(average_get, opt_average_get(rmsprop, "v", average))
DEFINE(average_swap, opt_average_swap(rmsprop))
DEFINE(call_wrong, opt_call(rmsprop, "eval"))
DEFINE(checkpoint_options, opt_checkpoint(rmsprop, "parameters=False"))
DEFINE(attribute, opt_attribute(rmsprop, "time", "12.5 h"))
DEFINE(attribute_get, ok(opt_attribute_get(rmsprop, "time")))
DEFINE(save_wrong, opt_save(adam, "/nowhere/at/all"))
DEFINE(load_wrong, opt_load(adam, "/nowhere/at/all"))
DEFINE(load_none, opt_load_memory(adam, "none", 4))
DEFINE(log_on, opt_log(ignore_line, NULL))
DEFINE(log_none, opt_log(NULL, NULL))
DEFINE(describe, ok(opt_describe(adam)))
DEFINE(describe_library, ok(opt_describe(0)))
DEFINE(list, ok(opt_list("optimizers")))
DEFINE(list_wrong, ok(opt_list("optimisers")))
DEFINE(version, ok(opt_version()))
DEFINE(error, ok(opt_error()))
DEFINE(error_status, opt_error_status() <= 0 ? OPT_OK : OPT_ERUNTIME)
DEFINE(traceback, ok(opt_traceback()))
DEFINE(warning, ok(opt_warning()))
DEFINE(free_adam, opt_free(adam))
DEFINE(free_sgd, opt_free(sgd))
DEFINE(free_lbfgs, opt_free(lbfgs))
DEFINE(free_sparse, opt_free(sparse))
DEFINE(free_rmsprop, opt_free(rmsprop))
DEFINE(free_pending, opt_free(pending))

#define CALL(name, fails) {#name, name, fails}
static const struct {
    const char *name;
    int (*make)(void);
    int fails;
} calls[] = {
    CALL(init, 0),
    CALL(log_on, 0),
    CALL(init_wrong, 1),
    CALL(create, 0),
    CALL(create_sgd, 0),
    CALL(create_lbfgs, 0),
    CALL(create_sparse, 0),
    CALL(create_rmsprop, 0),
    CALL(create_pending, 0),
    CALL(create_wrong, 1),
    CALL(create_negative, 1),
    CALL(create_null, 1),
    CALL(bind_w, 0),
    CALL(bind_sgd, 0),
    CALL(bind_lbfgs, 0),
    CALL(bind_pending, 0),
    CALL(bind_wrong, 1),
    CALL(bind_unaligned, 1),
    CALL(group, 0),
    CALL(group_wrong, 1),
    CALL(bind_nd, 0),
    CALL(bind_sparse, 0),
    CALL(step, 0),
    CALL(step, 0),
    CALL(step_overflow, 0),
    CALL(step_denormal, 0),
    CALL(step_nothing, 0),
    CALL(step_sgd, 0),
    CALL(step_sgd, 0),
    CALL(step_sparse, 0),
    CALL(step_sparse, 0),
    CALL(step_rmsprop, 0),
    CALL(step_rmsprop, 0),
    CALL(create_lent, 0),
    CALL(bind_lent, 0),
    CALL(step_lent, 0),
    CALL(step_lent, 0),
    CALL(step_lent, 0),
    CALL(step_lent_wrong, 1),
    CALL(free_lent, 0),
    CALL(step_lbfgs, 0),
    CALL(step_lbfgs, 0),
    CALL(step_failing, 1),
    CALL(step_wrong, 1),
    CALL(step_without_closure, 1),
    CALL(check_gradient, 0),
    CALL(check_again, 0),
    CALL(check_nothing, 1),
    CALL(iterate, 0),
    CALL(iterate_again, 0),
    CALL(iterate, 0),
    CALL(get, 0),
    CALL(get_wrong, 1),
    CALL(set, 0),
    CALL(set_wrong, 1),
    CALL(set_value, 0),
    CALL(set_value_wrong, 1),
    CALL(zero, 0),
    CALL(clip, 0),
    CALL(clip_wrong, 1),
    CALL(clip_value, 0),
    CALL(schedule, 0),
    CALL(schedule_wrong, 1),
    CALL(schedule_callback, 0),
    CALL(distribute_wrong, 1),
    CALL(bind_block_wrong, 1),
    CALL(step_sgd, 0),
    CALL(schedule_step, 0),
    CALL(schedule_metric, 1),
    CALL(stream, 0),
    CALL(stream_wrong, 1),
    CALL(grad_scale, 0),
    CALL(grad_scale_wrong, 1),
    CALL(step, 0),
    CALL(step, 0),
    CALL(step_overflow, 0),
    CALL(step_nothing, 0),
    CALL(grad_scale_none, 0),
    CALL(step, 0),
    CALL(grad_scale_sgd, 0),
    CALL(step_sgd, 0),
    CALL(average_on, 0),
    CALL(average_wrong, 1),
    CALL(step_rmsprop, 0),
    CALL(average_get, 0),
    CALL(average_swap, 0),
    CALL(average_swap, 0),
    CALL(call_wrong, 1),
    CALL(save_memory, 0),
    CALL(load_memory, 0),
    CALL(load_none, 1),
    CALL(save_and_load, 0),
    CALL(checkpoint_options, 0),
    CALL(attribute, 0),
    CALL(attribute_get, 0),
    CALL(save_wrong, 1),
    CALL(load_wrong, 1),
    CALL(step_rmsprop, 0),
    CALL(describe, 0),
    CALL(describe_library, 0),
    CALL(list, 0),
    CALL(list_wrong, 1),
    CALL(log_none, 0),
    CALL(version, 0),
    CALL(error, 0),
    CALL(error_status, 0),
    CALL(traceback, 0),
    CALL(warning, 0),
    CALL(free_adam, 0),
    CALL(free_adam, 1),
    CALL(free_sgd, 0),
    CALL(free_lbfgs, 0),
    CALL(free_sparse, 0),
    CALL(free_rmsprop, 0),
    CALL(free_pending, 0),
};

static void make_all_calls(const char *host)
{
    srand(42);
    first_of_42 = rand();
    static char name[128];
    doing = name;
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        snprintf(name, sizeof name, "%s of the host %s", calls[i].name, host);
        srand(42);
        look(&before);
        errno = 42;
        int status = calls[i].make();
        int error_number = errno;
        if ((status < 0) != calls[i].fails)
            fprintf(check_log, "%s returned %d\n", name, status);
        CHECK((status < 0) == calls[i].fails);
        CHECK(error_number == 42);
        check_same();
    }
}

/* ---- the hosts ---- */

/* The host's rounding mode is its OpenMP workers' too, in which torch would compute. */
static void all_values_are_rounded_alike(void)
{
    for (int i = 0; i < MANY; i++)
        w[i] = 1, dw[i] = 0.3f;
    CHECK(create_sgd() > 0 && bind_sgd() == OPT_OK && step_sgd() == OPT_OK && free_sgd() == OPT_OK);
    for (int i = 0; i < MANY; i++)
        CHECK(w[i] == w[0]);
}

static void everywhere(void (*set_up)(void))
{
#ifdef _OPENMP
#pragma omp parallel
    set_up();
#endif
    set_up(); /* LLVM's OpenMP puts this thread back, and its team takes this thread's settings */
}

static void round_up(void) { fesetround(FE_UPWARD); }

static void flush_to_zero(void)
{
#ifdef __SSE__
    _mm_setcsr(_mm_getcsr() | 0x8040);
#endif
}

static void set_traps(void)
{
#ifdef __GLIBC__
    feenableexcept(FE_DIVBYZERO | FE_INVALID | FE_OVERFLOW);
#endif
}

/* The description says why torch keeps to this thread; NULL where it need not. */
static void one_thread_because(const char *reason)
{
    const char *line = strstr(opt_describe(0), "\none thread because: the calling thread ");
    CHECK(reason ? line && strstr(line, reason) : !line);
}

static void be_usual(void) { fesetenv(FE_DFL_ENV); }

static void note(int signal) { (void)signal; }

/* Settings of a host that has some of everything. */
static void settle_in(void)
{
    setlocale(LC_ALL, "");
    umask(027);
    CHECK(chdir("/") == 0);
    static char signal_stack[65536], buffer[100];
    CHECK(sigaltstack(&(stack_t){.ss_sp = signal_stack, .ss_size = sizeof signal_stack}, NULL) == 0);
    CHECK(setvbuf(stdout, buffer, _IOLBF, sizeof buffer) == 0);
    const int caught[] = {SIGUSR1, SIGSEGV, SIGTERM}; /* and not SIGINT, which Python takes if it may */
    for (int i = 0; i < 3; i++)
        CHECK(sigaction(caught[i], &(struct sigaction){.sa_handler = note, .sa_flags = SA_RESTART}, NULL) ==
              0);
    signal(SIGPIPE, SIG_IGN);
    sigset_t mask;
    sigemptyset(&mask);
    sigaddset(&mask, SIGUSR2);
    sigprocmask(SIG_BLOCK, &mask, NULL);
#ifdef __linux__
    prctl(PR_SET_NAME, "host");
#endif
#ifdef _OPENMP
    omp_set_num_threads(3);
    int sum = 0;
#pragma omp parallel reduction(+ : sum)
    sum += 1;
    CHECK(sum == 3);
#endif
}

int main(void)
{
    check_log = stderr;
    settle_in();
    everywhere(round_up);
    make_all_calls("that rounds up, and starts Python so"); /* the import of torch, too */
    all_values_are_rounded_alike();
    one_thread_because("does not round to the nearest number\n");
    everywhere(be_usual);
    make_all_calls("as most are");
    one_thread_because(NULL);
    everywhere(set_traps);
    make_all_calls("with floating-point traps");
#ifdef __GLIBC__
    one_thread_because(fegetexcept() ? "traps floating-point errors\n" : NULL); /* ARM need not have them */
#endif
    everywhere(be_usual);
    everywhere(flush_to_zero);
    make_all_calls("that flushes to zero");
#ifdef __SSE__
    one_thread_because("flushes denormals to 0, as a program linked with -Ofast or -ffast-math does\n");
    _MM_SET_ROUNDING_MODE(_MM_ROUND_UP); /* which fegetround does not see */
    one_thread_because("does not round to the nearest number\n");
#endif
    everywhere(be_usual);
    feraiseexcept(FE_INEXACT | FE_UNDERFLOW);
    make_all_calls("with exceptions raised");
    return 0;
}
