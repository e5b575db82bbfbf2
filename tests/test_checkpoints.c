/* Checkpoints from C: in files and in memory, and everything that can be wrong with them. */
#define _GNU_SOURCE
#ifdef __linux__
#include <sched.h>
#endif
#include <sys/stat.h>
#include <sys/wait.h>

#include "check.h"

enum { N = 5 };

struct run {
    int opt;
    double w[N], dw[N];
};

static char folder[] = "/tmp/optplug-checkpoints-XXXXXX", path[256];

static void start(struct run *r, const char *spec, const double *w)
{
    memset(r, 0, sizeof *r);
    if (w)
        memcpy(r->w, w, sizeof r->w);
    r->opt = opt_create(spec);
    CHECK(r->opt > 0 && opt_bind(r->opt, "w", "float64", N, r->w, r->dw) == OPT_OK);
}

static void go(struct run *r, int steps)
{
    for (int n = 0; n < steps; n++) {
        for (int i = 0; i < N; i++)
            r->dw[i] = 2 * (r->w[i] - i);
        CHECK(opt_step(r->opt) == OPT_OK);
    }
}

/* A stopped and a running one end up at the same numbers, to the last bit. */
static void check_same_from_here(struct run *a, struct run *b)
{
    go(a, 7);
    go(b, 7);
    CHECK(memcmp(a->w, b->w, sizeof a->w) == 0);
    CHECK(opt_free(a->opt) == OPT_OK && opt_free(b->opt) == OPT_OK);
}

static const char *file(const char *name)
{
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static void a_file_goes_on(void)
{
    const char *const names[] = {"plain.pt", "with spaces and \xc3\xa4\xe2\x82\xac", "not UTF-8 \xff"};
    for (int i = 0; i < 3; i++) {
        struct run a, b;
        start(&a, "Adam(lr=0.1)", NULL);
        go(&a, 5);
        CHECK(opt_save(a.opt, file(names[i])) == OPT_OK);
        CHECK(opt_save(a.opt, path) == OPT_OK); /* over the one before */
        start(&b, "Adam(lr=0.5)", a.w);
        CHECK(opt_load(b.opt, path) == OPT_OK);
        double lr;
        CHECK(opt_get(b.opt, 0, "lr", &lr) == OPT_OK && lr == 0.1);
        check_same_from_here(&a, &b);
        strcat(path, ".tmp");
        CHECK(access(path, F_OK) != 0);
    }
}

static void memory_goes_on(void)
{
    struct run a, b;
    start(&a, "RMSprop(lr=0.1)", NULL);
    go(&a, 5);
    int64_t size = opt_save_memory(a.opt, NULL, 0);
    CHECK(size > 100);
    char *buffer = calloc(1, (size_t)size + 8);
    CHECK_FAILS(OPT_EINVAL, "size must be ", (int)opt_save_memory(a.opt, buffer, size - 1));
    CHECK(buffer[0] == '\0');
    CHECK(opt_save_memory(a.opt, buffer, size + 8) == size);
    start(&b, "RMSprop()", a.w);
    CHECK(opt_load_memory(b.opt, buffer, size) == OPT_OK);
    free(buffer);
    check_same_from_here(&a, &b);
}

static void parameters_are_in_it_if_that_is_asked_for(void)
{
    struct run a, b;
    start(&a, "Adam(lr=0.1)", NULL);
    go(&a, 5);
    CHECK(opt_save(a.opt, file("without")) == OPT_OK);
    start(&b, "Adam()", NULL);
    CHECK(opt_checkpoint(b.opt, "parameters=True") == OPT_OK);
    CHECK_FAILS(OPT_EINVAL, "it contains no parameters", opt_load(b.opt, path));
    CHECK(opt_checkpoint(a.opt, "parameters=True") == OPT_OK); /* each optimizer's own */
    CHECK(opt_save(a.opt, file("with")) == OPT_OK);
    CHECK(opt_load(b.opt, path) == OPT_OK);
    CHECK(memcmp(a.w, b.w, sizeof a.w) == 0);
    CHECK(opt_warning()[0] == '\0');

    CHECK(opt_checkpoint(b.opt, "parameters=False") == OPT_OK);
    memset(b.w, 0, sizeof b.w);
    CHECK(opt_load(b.opt, path) == OPT_OK && b.w[1] == 0);
    memcpy(b.w, a.w, sizeof b.w);
    check_same_from_here(&a, &b);
    CHECK(opt_warning()[0] == '\0');
}

static void a_restart_without_the_values_warns(void)
{
    struct run a, b;
    start(&a, "Adam(lr=0.1)", NULL);
    go(&a, 5);
    CHECK(opt_save(a.opt, file("values.pt")) == OPT_OK);
    for (int i = 0; i < 2; i++) { /* each optimizer that is loaded, and each load */
        start(&b, "Adam()", NULL);
        for (int j = 0; j < 2; j++) {
            CHECK(opt_load(b.opt, path) == OPT_OK && opt_warning()[0] == '\0');
            go(&b, 1);
            const char *text = opt_warning();
            CHECK(strstr(text, "values differ from those at opt_save in the parameters 'w'"));
            CHECK(strstr(text, "opt_checkpoint(opt, \"parameters=True\")"));
            CHECK(strchr(text, '\n') == text + strlen(text) - 1);
            go(&b, 5);
            CHECK(opt_warning()[0] == '\0' && strstr(opt_describe(b.opt), "without Python"));
        }
        CHECK(opt_free(b.opt) == OPT_OK);
    }
    CHECK(opt_free(a.opt) == OPT_OK);
}

/* Arrays that come with each step are nothing that a file could be compared with, or filled from. */
static void lent_arrays_are_the_hosts_to_keep(void)
{
    double w[N] = {1, 2, 3, 4, 5}, dw[N] = {1, 1, 1, 1, 1};
    for (int steps = 0; steps < 2; steps++) {
        int a = opt_create("SGD(lr=0.5)"), b = opt_create("SGD(lr=0.5)");
        CHECK(opt_bind(a, "w", "float64", N, NULL, NULL) == OPT_OK);
        CHECK(opt_bind(b, "w", "float64", N, NULL, NULL) == OPT_OK);
        CHECK(steps == 0 || opt_step_f64(a, w, dw) == OPT_OK);
        w[0] = -7;
        CHECK(opt_save(a, file("lent.pt")) == OPT_OK && opt_load(b, path) == OPT_OK);
        CHECK(opt_step_f64(b, w, dw) == OPT_OK && opt_warning()[0] == '\0');
        CHECK(opt_checkpoint(a, "parameters=True") == OPT_OK &&
              opt_checkpoint(b, "parameters=True") == OPT_OK);
        CHECK_FAILS(OPT_ESTATE, "parameter 'w' has arrays only during a step", opt_save(a, path));
        CHECK_FAILS(OPT_ESTATE, "parameter 'w' has arrays only during a step", opt_load(b, path));
        CHECK(opt_bind(a, "w", "float64", N, w, dw) == OPT_OK && opt_save(a, path) == OPT_OK);
        CHECK(opt_free(a) == OPT_OK && opt_free(b) == OPT_OK);
    }
}

static double steps_of(int opt)
{
    double steps = -1;
    CHECK(opt_get(opt, -1, "step", &steps) == OPT_OK);
    return steps;
}

static int evaluate(void *user, double *value)
{
    *value = 1;
    return *(int *)user;
}

/* Those by plans, by Python, by closures, and those before a load. */
static void steps_are_counted(void)
{
    const char *const specs[] = {"SGD(lr=0.1)", "Adam(lr=0.1)", "RMSprop(lr=0.1)", "Adafactor(lr=0.1)"};
    for (int i = 0; i < 4; i++) {
        struct run a, b;
        int fails = -3, works = 0;
        start(&a, specs[i], NULL);
        CHECK(steps_of(a.opt) == 0);
        go(&a, 10);
        CHECK((i < 3) ==
              (strstr(opt_describe(a.opt), "step: recorded") || strstr(opt_describe(a.opt), "step: aten::")));
        CHECK(steps_of(a.opt) == 10 && strstr(opt_describe(a.opt), "steps: 10\n"));
        CHECK(opt_step_closure(a.opt, evaluate, &works, NULL) == OPT_OK);
        CHECK_FAILS(-3, "failed", opt_step_closure(a.opt, evaluate, &fails, NULL));
        CHECK(opt_iterate(a.opt, 0) == OPT_EVALUATE && steps_of(a.opt) == 11);
        CHECK(opt_iterate(a.opt, 1) == OPT_DONE && steps_of(a.opt) == 12);
        go(&a, 3);
        CHECK(opt_save(a.opt, file("steps.pt")) == OPT_OK);
        start(&b, specs[i], a.w);
        go(&b, 4); /* which do not count after a load */
        CHECK_FAILS(OPT_EINVAL, "buffer", opt_load_memory(b.opt, "abc", 3));
        CHECK(steps_of(b.opt) == 4);
        memcpy(b.w, a.w, sizeof b.w);
        CHECK(opt_load(b.opt, path) == OPT_OK && steps_of(b.opt) == 15);
        check_same_from_here(&a, &b);
    }
    struct run a;
    start(&a, "SGD()", NULL);
    double steps;
    CHECK_FAILS(OPT_EINVAL, "group must be 0 to 0, or -1 for all, got 1", opt_get(a.opt, 1, "step", &steps));
    CHECK_FAILS(OPT_EINVAL, "no option 'step'", opt_set(a.opt, 0, "step=3"));
    CHECK(opt_free(a.opt) == OPT_OK);
    start(&a, "SGD()", NULL); /* in the place of the other */
    CHECK(steps_of(a.opt) == 0 && opt_free(a.opt) == OPT_OK);
}

static int has(int opt, const char *name, const char *text)
{
    const char *found = opt_attribute_get(opt, name);
    return found && strcmp(found, text) == 0;
}

static void the_hosts_words_come_back(void)
{
    enum { MOST = 1 << 20 };
    struct run a, b;
    start(&a, "Adam()", NULL);
    start(&b, "Adam()", NULL);
    CHECK(opt_attribute(a.opt, "time", "1") == OPT_OK && opt_attribute(a.opt, "time", "12.5 h") == OPT_OK);
    CHECK(opt_attribute(a.opt, "\xc3\xa4", "{\"seed\": 7}\n\xe2\x82\xac") == OPT_OK);
    CHECK(opt_attribute(a.opt, "empty", "") == OPT_OK && opt_attribute(a.opt, "gone", "x") == OPT_OK);
    CHECK(opt_attribute(a.opt, "gone", NULL) == OPT_OK && opt_attribute(a.opt, "never", NULL) == OPT_OK);
    CHECK(opt_attribute_get(a.opt, "gone") == NULL && opt_error_status() == OPT_EINVAL);
    CHECK(strstr(opt_error(), "no attribute 'gone'"));
    CHECK(strstr(opt_describe(a.opt), "attribute 'time': '12.5 h'\n"));
    CHECK(strstr(opt_describe(a.opt), "'{\"seed\": 7}\\n"));

    CHECK(opt_attribute(b.opt, "time", "0") == OPT_OK && opt_attribute(b.opt, "mine", "x") == OPT_OK);
    CHECK(opt_save(a.opt, file("words.pt")) == OPT_OK);
    CHECK_FAILS(OPT_EINVAL, "buffer", opt_load_memory(b.opt, "abc", 3));
    CHECK(has(b.opt, "mine", "x"));
    char buffer[20000];
    int64_t size = opt_save_memory(a.opt, buffer, sizeof buffer);
    CHECK(size > 0);
    for (int i = 0; i < 2; i++) {
        CHECK((i ? opt_load_memory(b.opt, buffer, size) : opt_load(b.opt, path)) == OPT_OK);
        CHECK(has(b.opt, "time", "12.5 h") && has(b.opt, "empty", ""));
        CHECK(has(b.opt, "\xc3\xa4", "{\"seed\": 7}\n\xe2\x82\xac"));
        CHECK(opt_attribute_get(b.opt, "mine") == NULL);
        CHECK(opt_attribute(b.opt, "mine", "x") == OPT_OK && opt_attribute(b.opt, "time", NULL) == OPT_OK);
    }

    char *text = malloc(MOST + 1);
    CHECK(text != NULL);
    memset(text, 'x', MOST);
    text[MOST] = '\0';
    CHECK_FAILS(OPT_EINVAL, "text of 'long' is too long", opt_attribute(b.opt, "long", text));
    text[MOST - 100] = '\0';
    CHECK(opt_attribute(b.opt, "long", text) == OPT_OK && has(b.opt, "long", text));
    CHECK_FAILS(OPT_EINVAL, "text of 'time' is too long", opt_attribute(b.opt, "time", text));
    CHECK(opt_attribute(b.opt, "long", text) == OPT_OK); /* in the place of itself */
    CHECK(strlen(opt_describe(b.opt)) < 5000);
    free(text);
    CHECK_FAILS(OPT_EINVAL, "name must not be NULL", opt_attribute(b.opt, NULL, "x"));
    CHECK_FAILS(OPT_EINVAL, "name must not be empty", opt_attribute(b.opt, "", "x"));
    CHECK_FAILS(OPT_EINVAL, "text is not UTF-8", opt_attribute(b.opt, "x", "\xff"));
    CHECK_FAILS(OPT_EINVAL, "name is not UTF-8", opt_attribute(b.opt, "\xff", "x"));
    CHECK(opt_attribute_get(b.opt, NULL) == NULL && strstr(opt_error(), "name must not be NULL"));
    CHECK(opt_free(a.opt) == OPT_OK && opt_free(b.opt) == OPT_OK);
}

static void options_of_checkpoints_are_checked(void)
{
    struct run a;
    start(&a, "SGD()", NULL);
    CHECK_FAILS(OPT_EINVAL, "options must not be NULL", opt_checkpoint(a.opt, NULL));
    CHECK_FAILS(OPT_EINVAL, "options 'parameter=True': no option 'parameter': did you mean parameters",
                opt_checkpoint(a.opt, "parameter=True"));
    CHECK_FAILS(OPT_EINVAL,
                "options 'schedules=False, parameters=1': parameters must be True or False, got 1",
                opt_checkpoint(a.opt, "schedules=False, parameters=1"));
    CHECK(strstr(opt_describe(a.opt), "checkpoint: parameters=False, schedules=True\n"));
    CHECK(opt_checkpoint(a.opt, "schedules=False") == OPT_OK && opt_checkpoint(a.opt, "") == OPT_OK);
    CHECK(opt_checkpoint(a.opt, "parameters=True") == OPT_OK);
    CHECK(strstr(opt_describe(a.opt), "checkpoint: parameters=True, schedules=False\n"));
    CHECK_FAILS(OPT_EINVAL, "call opt_checkpoint(opt, \"parameters=True\")",
                opt_init("save_parameters=True"));
    CHECK(opt_free(a.opt) == OPT_OK);
}

/* What fails leaves an optimizer that goes on as if nothing had been. */
static void what_is_wrong_is_said(void)
{
    struct run a, b, other;
    start(&a, "Adam(lr=0.1)", NULL);
    start(&b, "Adam(lr=0.1)", NULL);
    go(&a, 3);
    go(&b, 3);

    CHECK_FAILS(OPT_EINVAL, "path must not be NULL", opt_save(a.opt, NULL));
    CHECK_FAILS(OPT_EINVAL, "path must not be NULL", opt_load(a.opt, NULL));
    CHECK_FAILS(OPT_EINVAL, "buffer must not be NULL", opt_load_memory(a.opt, NULL, 3));
    CHECK_FAILS(OPT_EINVAL, "size must be positive, got -3", opt_load_memory(a.opt, "abc", -3));
    CHECK_FAILS(OPT_EINVAL, "size must be positive, got 0", (int)opt_save_memory(a.opt, path, 0));
    CHECK_FAILS(OPT_EINVAL, "buffer: not a checkpoint", opt_load_memory(a.opt, "abc", 3));
    CHECK_FAILS(OPT_EIO, "No such file or directory", opt_load(a.opt, file("nowhere")));
    CHECK_FAILS(OPT_EIO, "No such file or directory", opt_save(a.opt, file("nowhere/x.pt")));
    CHECK_FAILS(OPT_EIO, "path ''", opt_load(a.opt, ""));
    CHECK_FAILS(OPT_EIO, "path ''", opt_save(a.opt, ""));
    CHECK_FAILS(OPT_EIO, "s a directory", opt_save(a.opt, folder));
    CHECK_FAILS(OPT_EIO, "s a directory", opt_load(a.opt, folder));

    start(&other, "SGD()", NULL);
    CHECK(opt_save(other.opt, file("sgd.pt")) == OPT_OK && opt_free(other.opt) == OPT_OK);
    CHECK_FAILS(OPT_EINVAL, "the file is of SGD, this optimizer is Adam", opt_load(a.opt, path));
    CHECK(strstr(opt_error(), "sgd.pt") != NULL);

    start(&other, "Adam()", NULL);
    double v[N], dv[N];
    CHECK(opt_bind(other.opt, "v", "float64", N, v, dv) == OPT_OK);
    CHECK(opt_save(other.opt, file("two.pt")) == OPT_OK);
    CHECK_FAILS(OPT_EINVAL, "has a parameter 'v', which is not bound here", opt_load(a.opt, path));
    CHECK(opt_save(a.opt, file("one.pt")) == OPT_OK);
    CHECK_FAILS(OPT_EINVAL, "has no parameter 'v': there are 'w'", opt_load(other.opt, path));
    CHECK(opt_free(other.opt) == OPT_OK);

    other.opt = opt_create("Adam()");
    CHECK(opt_bind(other.opt, "w", "float64", N - 1, other.w, other.dw) == OPT_OK);
    CHECK_FAILS(OPT_EINVAL,
                "parameter 'w' is float64 of shape (5,) in the file, and float64 of shape (4,) here",
                opt_load(other.opt, path));
    CHECK(opt_save_memory(other.opt, NULL, 0) > 0); /* neither fixes which parameters there are */
    CHECK(opt_bind(other.opt, "v", "float64", N, v, dv) == OPT_OK);
    CHECK(opt_free(other.opt) == OPT_OK);
    other.opt = opt_create("Adam()");
    CHECK_FAILS(OPT_ESTATE, "nothing is bound", opt_load(other.opt, path));
    CHECK(opt_bind(other.opt, "w", "float32", N, other.w, other.dw) == OPT_OK);
    CHECK_FAILS(OPT_EINVAL, "and float32 of shape (5,) here", opt_load(other.opt, path));
    CHECK(opt_free(other.opt) == OPT_OK);

    start(&other, "Adam(amsgrad=True)", NULL);
    CHECK(opt_schedule(other.opt, "StepLR(3)") == OPT_OK);
    CHECK_FAILS(OPT_EINVAL, "the file has schedulers (none), this optimizer has 'StepLR(3)'",
                opt_load(other.opt, path));
    CHECK(opt_free(other.opt) == OPT_OK);

    start(&other, "SGD()", NULL);
    CHECK(opt_iterate(other.opt, 0) == OPT_EVALUATE);
    CHECK_FAILS(OPT_ESTATE, "opt_save in the middle of a step", opt_save(other.opt, path));
    CHECK_FAILS(OPT_ESTATE, "opt_load in the middle of a step", opt_load(other.opt, path));
    CHECK(opt_free(other.opt) == OPT_OK);
    check_same_from_here(&a, &b);
}

/* Let this process have an empty file system; 0 where it may not. */
static int leave_the_file_system(void)
{
    CHECK(opt_init(NULL) == OPT_OK);
    return chroot(folder) == 0 && chdir("/") == 0;
}

/* First of all, and in a child: whatever Python loads late is not there then. */
static void the_file_system_may_go_after_the_start(void)
{
    pid_t child = fork();
    CHECK(child >= 0);
    if (child) {
        int status;
        CHECK(waitpid(child, &status, 0) == child && status == 0);
        return;
    }
#ifdef __linux__
    if (geteuid() != 0 && unshare(CLONE_NEWUSER) != 0)
        _exit(0); /* nothing to be seen by this user */
#endif
    if (!leave_the_file_system())
        _exit(0);
    struct run a, b;
    start(&a, "Adam(lr=0.1)", NULL);
    CHECK(opt_schedule(a.opt, "StepLR(2)") == OPT_OK && opt_average(a.opt, "AveragedModel()") == OPT_OK);
    go(&a, 3);
    int64_t size = opt_save_memory(a.opt, NULL, 0);
    CHECK(size > 0);
    void *buffer = malloc((size_t)size);
    CHECK(opt_save_memory(a.opt, buffer, size) == size);
    start(&b, "Adam()", a.w);
    CHECK(opt_load_memory(b.opt, buffer, size) == OPT_OK);
    CHECK(opt_save(a.opt, "/here.pt") == OPT_OK && opt_load(b.opt, "/here.pt") == OPT_OK);
    CHECK(unlink("/here.pt") == 0);
    CHECK_FAILS(OPT_EINVAL, "damaged", opt_load_memory(b.opt, buffer, size - 1));
    CHECK_FAILS(OPT_EINVAL, "Invalid learning rate: -1", opt_create("Adam(lr=-1)"));
    check_same_from_here(&a, &b);
    free(buffer);
    _exit(0);
}

int main(void)
{
    int quiet = check_quiet();
    CHECK(mkdtemp(folder) != NULL);
    the_file_system_may_go_after_the_start();
    a_file_goes_on();
    memory_goes_on();
    parameters_are_in_it_if_that_is_asked_for();
    a_restart_without_the_values_warns();
    lent_arrays_are_the_hosts_to_keep();
    steps_are_counted();
    the_hosts_words_come_back();
    options_of_checkpoints_are_checked();
    what_is_wrong_is_said();
    check_was_quiet(quiet);
    char command[128];
    snprintf(command, sizeof command, "rm -r %s", folder);
    return system(command);
}
