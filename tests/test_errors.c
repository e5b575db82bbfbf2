/* Bad input: each a status and one line that names the argument and its value, nothing printed, and
 * everything as it was. */
#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <sys/resource.h>

#include "check.h"

static const int64_t two[] = {2};
static double w[4], dw[4];

static void bad_specs(void)
{
    CHECK_FAILS(OPT_EINVAL, "spec must not be NULL", opt_create(NULL));
    CHECK_FAILS(OPT_EINVAL, "spec 'Adm(lr=0.1)': no optimizer 'Adm': did you mean Adam",
                opt_create("Adm(lr=0.1)"));
    CHECK_FAILS(OPT_EINVAL, "did you mean SGD", opt_create("sgd(lr=0.1)"));
    CHECK_FAILS(OPT_EINVAL, "spec 'Adam': it must be a call, such as 'Adam()'", opt_create("Adam"));
    CHECK_FAILS(OPT_EINVAL, "spec '': ", opt_create(""));
    CHECK_FAILS(OPT_EINVAL, "spec '0.1': it must be a call", opt_create("0.1"));
    CHECK_FAILS(OPT_EINVAL, "spec 'Adam(lr=': it cannot be read", opt_create("Adam(lr="));
    CHECK_FAILS(OPT_EINVAL, "'Adam(lr=-1)': lr=-1: Invalid learning rate: -1", opt_create("Adam(lr=-1)"));
    CHECK(strstr(opt_traceback(), "Traceback") && strstr(opt_traceback(), "adam.py"));
    CHECK_FAILS(OPT_EINVAL, "did you mean lr", opt_create("Adam(lrr=0.1)"));
    CHECK_FAILS(OPT_EINVAL, "no argument of Adam 'speed': did you mean fused? there are amsgrad, betas",
                opt_create("Adam(speed=1)"));
    CHECK_FAILS(OPT_EINVAL, "'params'", opt_create("Adam(params=1)"));
    CHECK_FAILS(OPT_EINVAL, "\"os.system('false')\" is neither a literal", opt_create("os.system('false')"));
    CHECK_FAILS(OPT_EINVAL, "'2 ** 9'", opt_create("Adam(lr=2**9)"));
    CHECK_FAILS(OPT_EINVAL, "third_party=True", opt_create("os:Adam()"));
    CHECK_FAILS(OPT_EINVAL, "not UTF-8", opt_create("Adam(lr=\xff)"));
    CHECK_FAILS(OPT_EINVAL, "`fused` and `foreach` cannot be `True` together",
                opt_create("Adam(fused=True, foreach=True)"));
    CHECK_FAILS(OPT_EINVAL, "argument 'lr' is given twice", opt_create("Adam(lr=0.1, lr=0.2)"));
    CHECK_FAILS(OPT_EINVAL,
                "spec \"ASGD(t0='s')\": ", opt_create("ASGD(t0='s')")); /* only its steps see that */
    CHECK_FAILS(OPT_EINVAL, "in-place operation", opt_create("Adam(differentiable=True)"));
    CHECK_FAILS(OPT_EINVAL, "only 'strong_wolfe' is supported", opt_create("LBFGS(line_search_fn='armijo')"));
    static char big[1 << 20];
    memset(big, '(', sizeof big - 1);
    CHECK_FAILS(OPT_EINVAL, "longer than", opt_create(big));
    big[5000] = '\0';
    CHECK_FAILS(OPT_EINVAL, "it is too deeply nested", opt_create(big));
}

/* Python's parser is written in C and calls itself: a small stack must do. */
static void *deep_specs(void *unused)
{
    const char *const units[] = {"(", "[", "-", "A(", "not ", "lambda:", "1**", "{1:", "await ", "1 if "};
    for (size_t i = 0; i < sizeof units / sizeof *units; i++) {
        char spec[40000] = "Adam(lr=";
        for (int n = 0; n < 5000; n++)
            strcat(spec, units[i]);
        CHECK_FAILS(OPT_EINVAL, "it is too deeply nested", opt_create(spec));
    }
    int opt = opt_create("Adam(betas=(-(-0.5), 0.75))");
    CHECK(opt < 0 || opt_free(opt) == OPT_OK);
    return unused;
}

static void deep_specs_on_a_small_stack(void)
{
    pthread_attr_t small;
    pthread_t thread;
    CHECK(pthread_attr_init(&small) == 0 && pthread_attr_setstacksize(&small, 256 * 1024) == 0);
    CHECK(pthread_create(&thread, &small, deep_specs, NULL) == 0 && pthread_join(thread, NULL) == 0);
}

static void bad_options(void)
{
    CHECK_FAILS(OPT_EINVAL, "options 'threads=4': no option 'threads': did you mean num_threads",
                opt_init("threads=4"));
    CHECK_FAILS(OPT_EINVAL, "num_threads must be a whole number from 1 to", opt_init("num_threads=0"));
    CHECK_FAILS(OPT_EINVAL,
                "third_party must be True, False or a list of packages, as in ['pytorch_optimizer'], got 1",
                opt_init("third_party=1"));
    CHECK_FAILS(OPT_EINVAL, "a quoted path", opt_init("python=/usr/bin/python3"));
    CHECK_FAILS(OPT_EINVAL, "no option 'python3'", opt_init("python3='/usr/bin/python3'"));
    CHECK_FAILS(OPT_EINVAL, "got 10000000000000", opt_init("num_threads=10000000000000"));
    CHECK_FAILS(OPT_EINVAL, "argument 'num_threads' is given twice",
                opt_init("num_threads=1, num_threads=1"));
    CHECK_FAILS(OPT_EINVAL, "a quote is not closed", opt_init("python='/usr/bin/python3"));
    CHECK_FAILS(OPT_EINVAL, "'name=value, name=value'", opt_init("num_threads=1)(2"));
    CHECK_FAILS(OPT_ESTATE, "already running: name it in the first opt_init",
                opt_init("num_threads=1, python='/nowhere'"));
    static char long_options[1 << 21];
    memset(long_options, ',', sizeof long_options - 1);
    CHECK_FAILS(OPT_EINVAL, "options is longer than 10000 characters", opt_init(long_options));
    CHECK(opt_init("num_threads=1, third_party=False") == OPT_OK);
    CHECK(opt_init(NULL) == OPT_OK && opt_init("") == OPT_OK);
}

static void bad_parameters(int opt)
{
    CHECK_FAILS(OPT_EINVAL, "name must not be NULL", opt_bind(opt, NULL, "float64", 2, w, dw));
    CHECK_FAILS(OPT_EINVAL, "name must not be empty", opt_bind(opt, "", "float64", 2, w, dw));
    CHECK_FAILS(OPT_EINVAL, "dtype must not be NULL", opt_bind(opt, "v", NULL, 2, w, dw));
    CHECK_FAILS(OPT_EINVAL, "data must not be NULL where grad is not",
                opt_bind(opt, "v", "float64", 2, NULL, dw));
    CHECK_FAILS(OPT_EINVAL, "grad must not be NULL where data is not",
                opt_bind(opt, "v", "float64", 2, w, NULL));
    CHECK_FAILS(OPT_EINVAL, "device must not be NULL",
                opt_bind_nd(opt, "v", "float64", NULL, 1, two, w, NULL, dw, NULL));
    CHECK_FAILS(OPT_EINVAL, "n must not be negative, got -3", opt_bind(opt, "v", "float64", -3, w, dw));
    CHECK_FAILS(OPT_EINVAL, "9223372036854775807 values of float64 reach beyond the end of memory",
                opt_bind(opt, "v", "float64", INT64_MAX, w, dw));
    CHECK_FAILS(OPT_EINVAL, "reach beyond", opt_bind(opt, "v", "float64", INT64_MAX / 8, w, dw));
    CHECK_FAILS(OPT_EINVAL, "no dtype 'float46': did you mean float64",
                opt_bind(opt, "v", "float46", 2, w, dw));
    CHECK_FAILS(OPT_EINVAL, "no dtype 'int'", opt_bind(opt, "v", "int", 2, w, dw));
    CHECK_FAILS(OPT_EINVAL, "no device 'gpu'",
                opt_bind_nd(opt, "v", "float64", "gpu", 1, two, w, NULL, dw, NULL));
    CHECK_FAILS(OPT_EINVAL, "not aligned to 8 bytes", opt_bind(opt, "v", "float64", 1, (char *)w + 1, dw));
    CHECK_FAILS(OPT_EINVAL, "name is not UTF-8", opt_bind(opt, "\xff", "float64", 2, w, dw));

    const int64_t negative[] = {-1}, matrix[] = {2, 2}, huge[] = {INT64_MAX, INT64_MAX};
    const int64_t back[] = {-2, 1}, overlap[] = {1, 1}, broadcast[] = {0, 1}, far[] = {INT64_MAX, 1};
    CHECK_FAILS(OPT_EINVAL, "ndim must be 0 to 64, got -1",
                opt_bind_nd(opt, "v", "float64", "cpu", -1, two, w, NULL, dw, NULL));
    CHECK_FAILS(OPT_EINVAL, "ndim must be 0 to 64, got 65",
                opt_bind_nd(opt, "v", "float64", "cpu", 65, two, w, NULL, dw, NULL));
    CHECK_FAILS(OPT_EINVAL, "shape must not be NULL",
                opt_bind_nd(opt, "v", "float64", "cpu", 1, NULL, w, NULL, dw, NULL));
    CHECK_FAILS(OPT_EINVAL, "shape[0] must not be negative, got -1",
                opt_bind_nd(opt, "v", "float64", "cpu", 1, negative, w, NULL, dw, NULL));
    CHECK_FAILS(OPT_EINVAL, "beyond the end of memory",
                opt_bind_nd(opt, "v", "float64", "cpu", 2, huge, w, NULL, dw, NULL));
    CHECK_FAILS(OPT_EINVAL, "strides[0] must not be negative, got -2",
                opt_bind_nd(opt, "v", "float64", "cpu", 2, matrix, w, back, dw, NULL));
    CHECK_FAILS(OPT_EINVAL, "is 1, so elements share memory",
                opt_bind_nd(opt, "v", "float64", "cpu", 2, matrix, w, overlap, dw, NULL));
    CHECK_FAILS(OPT_EINVAL, "grad_strides[0] is 0, so elements share memory",
                opt_bind_nd(opt, "v", "float64", "cpu", 2, matrix, w, NULL, dw, broadcast));
    CHECK_FAILS(OPT_EINVAL, "data: 2 x 2 values of float64 reach beyond",
                opt_bind_nd(opt, "v", "float64", "cpu", 2, matrix, w, far, dw, NULL));
}

static void bad_moments(int opt)
{
    CHECK_FAILS(OPT_ESTATE, "nothing is bound: call opt_bind before opt_step", opt_step(opt));
    bad_parameters(opt); /* of all these nothing stays */
    CHECK_FAILS(OPT_ESTATE, "nothing is bound", opt_step(opt));

    w[0] = w[1] = 1, dw[0] = 2, dw[1] = 4;
    CHECK(opt_bind(opt, "w", "float64", 2, w, dw) == OPT_OK);
    CHECK(opt_step(opt) == OPT_OK);
    CHECK(w[0] == 0 && w[1] == -1);
    CHECK_FAILS(OPT_ESTATE, "name 'v' is new after the first step",
                opt_bind(opt, "v", "float64", 2, w + 2, dw + 2));
    CHECK_FAILS(OPT_EINVAL, "name 'w' is bound with shape (2,), got (1,)",
                opt_bind(opt, "w", "float64", 1, w + 2, dw + 2));
    CHECK_FAILS(OPT_EINVAL, "name 'w' is bound with dtype torch.float64, got torch.float32",
                opt_bind(opt, "w", "float32", 2, w + 2, dw + 2));
    bad_parameters(opt);
    CHECK(opt_step(opt) == OPT_OK); /* with 'w' where it was, and its momentum */
    CHECK(w[0] == -1.5 && w[1] == -4 && w[2] == 0 && w[3] == 0);
}

static void fused_on_arrays_that_its_kernels_would_corrupt(void)
{
    const int64_t matrix[] = {2, 2}, columns[] = {1, 2};
    const char *specs[] = {"SGD(lr=1, fused=True)", "Adam(fused=True)"};
    for (int i = 0; i < 2; i++) {
        int opt = opt_create(specs[i]);
        CHECK(opt > 0);
        CHECK_FAILS(OPT_EINVAL, "parameter 'w': with fused=True",
                    opt_bind_nd(opt, "w", "float64", "cpu", 2, matrix, w, columns, dw, NULL));
        CHECK(opt_bind_nd(opt, "w", "float64", "cpu", 2, matrix, w, columns, dw, columns) == OPT_OK);
        CHECK(opt_free(opt) == OPT_OK);
    }
}

static void an_optimizer_that_refuses_a_parameter(void)
{
    int opt = opt_create("Muon()");
    CHECK(opt > 0);
    CHECK_FAILS(OPT_EINVAL, "parameter 'w': Muon only supports 2D", opt_bind(opt, "w", "float64", 2, w, dw));
    CHECK_FAILS(OPT_EINVAL, ": bind it as a matrix, with opt_bind_nd",
                opt_bind(opt, "w", "float64", 2, w, dw));
    CHECK_FAILS(OPT_ESTATE, "nothing is bound", opt_step(opt));
    CHECK(opt_free(opt) == OPT_OK);
}

/* After a first step or schedule that fails the optimizer is as it was before: more parameters may come. */
static void a_first_step_that_fails(void)
{
    const int64_t shape[] = {1, 0, INT64_MAX};
    CHECK(opt_init("error_if_nonfinite=True") == OPT_OK);
    int opt = opt_create("SGD(lr=1)");
    CHECK(opt_init("error_if_nonfinite=False") == OPT_OK);
    double nan[] = {0}, lr = 0;
    nan[0] = strtod("nan", NULL);
    CHECK(opt_bind(opt, "v", "float64", 1, w, nan) == OPT_OK);
    CHECK_FAILS(OPT_ENONFINITE, "parameter 'v'", opt_step(opt));
    CHECK_FAILS(OPT_EINVAL, "no scheduler 'Nope'", opt_schedule(opt, "Nope()"));
    CHECK_FAILS(OPT_ESTATE, "there is no scheduler", opt_schedule_step(opt));
    CHECK_FAILS(OPT_EINVAL, "no average 'Nope'", opt_average(opt, "Nope()"));
    CHECK(opt_set(opt, 0, "lr=0.5") == OPT_OK);
    CHECK_FAILS(OPT_ENONFINITE, "parameter 'v'", opt_step(opt));
    CHECK(opt_get(opt, 0, "lr", &lr) == OPT_OK && lr == 0.5);
    CHECK(opt_bind(opt, "u", "float64", 2, w + 2, dw + 2) == OPT_OK);
    CHECK_FAILS(OPT_EINVAL, "beyond the end of memory",
                opt_bind_nd(opt, "e", "float64", "cpu", 3, shape, NULL, NULL, NULL, NULL));
    CHECK(opt_free(opt) == OPT_OK);
}

/* A parameter of 2^44 values, whose state no machine can hold; no value of it is ever touched. */
static void no_memory_for_the_state(void)
{
    int opt = opt_create("Adam()");
    CHECK(opt_bind(opt, "w", "float64", 2, w, dw) == OPT_OK);
    const int64_t n = INT64_C(1) << 44;
    uintptr_t beyond = (uintptr_t)w + ((uintptr_t)1 << 40);
    CHECK(opt_bind(opt, "huge", "float64", n, (void *)beyond, (void *)(beyond + 8 * (uintptr_t)n)) == OPT_OK);
    for (int i = 0; i < 2; i++)
        CHECK_FAILS(OPT_ENOMEM, "can't allocate memory", opt_step(opt));
    CHECK(opt_free(opt) == OPT_OK);
}

#ifdef __linux__
/* The state of a first step does not fit, halfway; when there is memory again, the next step makes it. */
static void no_memory_for_a_while(const char *schedule)
{
    enum { MANY = 1 << 24, BYTES = MANY * sizeof(double) };
    double *big = calloc(MANY, sizeof *big), *dbig = calloc(MANY, sizeof *dbig);
    int opt = opt_create("Adam(lr=0.5)");
    CHECK(big && dbig && opt > 0 && opt_bind(opt, "w", "float64", MANY, big, dbig) == OPT_OK);
    CHECK(!schedule || opt_schedule(opt, schedule) == OPT_OK);
    unsigned long pages = 0;
    FILE *status = fopen("/proc/self/statm", "r");
    CHECK(status && fscanf(status, "%lu", &pages) == 1 && fclose(status) == 0);
    struct rlimit before, tight;
    CHECK(getrlimit(RLIMIT_AS, &before) == 0);
    tight = before;
    tight.rlim_cur = pages * (unsigned long)getpagesize() + BYTES + BYTES / 2; /* one of the two moments */
    dbig[0] = 1;
    CHECK(setrlimit(RLIMIT_AS, &tight) == 0);
    int result = opt_step(opt);
    CHECK(setrlimit(RLIMIT_AS, &before) == 0);
    CHECK_FAILS(OPT_ENOMEM, "can't allocate memory", result);
    CHECK(big[0] == 0 && dbig[0] == 1);
    CHECK(opt_step(opt) == OPT_OK && big[0] < 0 && big[1] == 0);
    CHECK(opt_free(opt) == OPT_OK);
    free(big), free(dbig);
}
#endif

/* A host that does not look at what opt_create returns learns what was wrong all the same. */
static void a_status_as_a_handle(void)
{
    int opt = opt_create("Adm(lr=0.1)");
    for (int i = 0; i < 2; i++) {
        CHECK_FAILS(OPT_EHANDLE, "opt=-1 is not an optimizer: opt_create failed: spec 'Adm(lr=0.1)': no",
                    opt_bind(opt, "w", "float64", 2, w, dw));
        CHECK_FAILS(OPT_EHANDLE, "did you mean Adam", opt_step(opt));
    }
    opt = opt_create(NULL);
    CHECK_FAILS(OPT_EHANDLE, "opt_create failed: spec must not be NULL", opt_step(opt));
}

static void bad_handles(int opt)
{
    const int made_up[] = {0, 1, -1, INT_MIN, INT_MAX, opt + 1, opt + (1 << 16), opt ^ (1 << 30)};
    for (size_t i = 0; i < sizeof made_up / sizeof *made_up; i++) {
        char words[40];
        snprintf(words, sizeof words, "opt=%d is not an optimizer", made_up[i]);
        CHECK_FAILS(OPT_EHANDLE, words, opt_step(made_up[i]));
        CHECK_FAILS(OPT_EHANDLE, words, opt_free(made_up[i]));
        CHECK_FAILS(OPT_EHANDLE, words, opt_bind(made_up[i], "w", "float64", 2, w, dw));
        if (made_up[i] != 0)
            CHECK_FAILS(OPT_EHANDLE, words, opt_describe(made_up[i]) ? OPT_OK : OPT_EHANDLE);
    }
    CHECK(opt_free(opt) == OPT_OK);
    CHECK_FAILS(OPT_EHANDLE, "is not an optimizer", opt_step(opt));
    CHECK_FAILS(OPT_EHANDLE, "is not an optimizer", opt_free(opt));
    int next = opt_create("SGD(lr=0.1)"); /* takes the freed one's place */
    CHECK(next > 0 && next != opt);
    CHECK_FAILS(OPT_EHANDLE, "is not an optimizer", opt_free(opt));
    CHECK(opt_free(next) == OPT_OK);
}

int main(void)
{
    int quiet = check_quiet();
    CHECK_FAILS(OPT_EHANDLE, "opt=65536 is not an optimizer", opt_step(65536)); /* before anything */
    bad_specs();
    deep_specs_on_a_small_stack();
    bad_options();
    errno = 42;
    int opt = opt_create("SGD(lr=0.5, momentum=0.5)");
    CHECK(opt > 0 && errno == 42);
    bad_moments(opt);
    fused_on_arrays_that_its_kernels_would_corrupt();
    an_optimizer_that_refuses_a_parameter();
    a_first_step_that_fails();
    if (!CHECK_SANITIZED)
        no_memory_for_the_state();
#ifdef __linux__
    for (int i = 0; i < 2 && !CHECK_SANITIZED; i++)
        no_memory_for_a_while(i ? "StepLR(1)" : NULL);
#endif
    a_status_as_a_handle();
    bad_handles(opt);
    check_was_quiet(quiet);
    return 0;
}
