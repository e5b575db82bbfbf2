/* Random calls with hostile arguments, at every function of optplug.h: see usage() below.
 *
 * Two thirds of the time one thread calls, and a seed determines all that it does; then three threads share
 * some optimizers.  All that an optimizer is lent lies between two pages that nobody may touch, so that a
 * read or write outside is a crash there and then; bytes between arrays are compared after each call.
 *
 * What C cannot know of a pointer is not asked of it: an optimizer that has accepted arrays which leave their
 * memory is freed and nothing else, and closures keep to what optplug.h allows between threads. */
#define _GNU_SOURCE
#include <dirent.h>
#include <getopt.h>
#include <limits.h>
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <time.h>

#include "check.h"

enum {
    DATA = 1,        /* a byte of a parameter */
    GRAD = 2,        /* a byte of a gradient */
    ARENA = 32768,   /* bytes that an optimizer's arrays lie in */
    GIANT = 2 << 20, /* bytes that an argument may have */
    DEPTH = 3,       /* calls within calls */
    LIVE = 5,        /* optimizers of one thread */
    SHARED = 3,      /* optimizers of all */
    MOST = 6,        /* parameters of one optimizer */
    THREADS = 3,
    RECENT = 30,      /* calls that a failure shows */
    EVALUATIONS = 30, /* of a closure in one call; then it fails, since some options ask for no end of them */
    PATIENCE = 600,   /* seconds, for one call */
    NO_TEXT = -1000000 /* what stands for NULL where a text is returned */
};

/* ---- what is said ---- */

static const char *const optimizers[] = {
    "SGD(lr=0.1)",
    "SGD(lr=0.1, momentum=0.9, dampening=0.1, weight_decay=0.01)",
    "SGD(lr=0.1, momentum=0.9, nesterov=True, maximize=True)",
    "SGD(lr=0.1, fused=False)",
    "Adam()",
    "Adam(lr=0.1, betas=(0.8, 0.99), eps=1e-6, weight_decay=0.01, amsgrad=True, maximize=True)",
    "Adam(lr=0.1, foreach=True)",
    "Adam(fused=True)",
    "AdamW(lr=0.1, weight_decay=0.1)",
    "Adagrad(lr=0.1, lr_decay=0.01, initial_accumulator_value=0.1)",
    "Adadelta(lr=0.5, rho=0.8, weight_decay=0.01)",
    "Adafactor(lr=0.05, beta2_decay=-0.5, weight_decay=0.1)",
    "Adamax(lr=0.1)",
    "ASGD(lr=0.1, t0=5, lambd=0.1)",
    "LBFGS(lr=0.1, max_iter=3)",
    "LBFGS(max_iter=4, history_size=3, line_search_fn='strong_wolfe')",
    "Muon(lr=0.1, momentum=0.9, ns_steps=3, adjust_lr_fn='match_rms_adamw')",
    "NAdam(lr=0.1, weight_decay=0.01, decoupled_weight_decay=True)",
    "RAdam(lr=0.1, decoupled_weight_decay=True)",
    "RMSprop(lr=0.1, momentum=0.9, centered=True)",
    "Rprop(lr=0.1, etas=(0.4, 1.3), step_sizes=(1e-5, 10))",
    "SparseAdam(lr=0.1, betas=(0.8, 0.99))",
    "torch.optim:Adam(lr=1)",
    NULL};
static const char *const schedulers[] = {
    "LambdaLR()",
    "MultiplicativeLR()",
    "StepLR(step_size=3, gamma=0.5)",
    "MultiStepLR([2, 9], gamma=0.3)",
    "ConstantLR(factor=0.3, total_iters=4)",
    "LinearLR(start_factor=0.1, total_iters=8)",
    "ExponentialLR(0.9)",
    "SequentialLR([LinearLR(total_iters=5), CosineAnnealingLR(T_max=10)], milestones=[5])",
    "CosineAnnealingLR(T_max=7, eta_min=1e-4)",
    "ChainedScheduler([PolynomialLR(total_iters=9), StepLR(4)])",
    "ReduceLROnPlateau(patience=1, factor=0.5)",
    "CyclicLR(base_lr=0.01, max_lr=0.1, step_size_up=4, cycle_momentum=False)",
    "CyclicLR(base_lr=0.01, max_lr=0.1, step_size_up=4)",
    "CosineAnnealingWarmRestarts(T_0=3, T_mult=2)",
    "OneCycleLR(max_lr=0.1, total_steps=30, cycle_momentum=False)",
    "PolynomialLR(total_iters=12, power=0.9)",
    "SWALR(swa_lr=0.05, anneal_epochs=5)",
    NULL};
static const char *const averages[] = {"AveragedModel()",
                                       "AveragedModel(avg_fn=get_ema_avg_fn(0.9))",
                                       "AveragedModel(multi_avg_fn=get_ema_multi_avg_fn(0.7))",
                                       "AveragedModel(multi_avg_fn=get_swa_multi_avg_fn())",
                                       "AveragedModel(use_buffers=True)",
                                       NULL};
static const char *const options[] = {"lr=1e-3",
                                      "lr=0.25, weight_decay=0",
                                      "betas=(0.9, 0.99)",
                                      "momentum=0.9",
                                      "momentum=0, nesterov=False",
                                      "amsgrad=True",
                                      "eps=1e-6, maximize=True",
                                      "weight_decay=0.5",
                                      "lr_decay=0.1",
                                      "max_iter=2",
                                      "rho=0.5, lr=1",
                                      "etas=(0.5, 1.2)",
                                      "",
                                      NULL};
static const char *const settings[] = {"error_if_nonfinite=True",
                                       "error_if_nonfinite=False",
                                       "plans=False",
                                       "plans=True",
                                       "plans='stable'",
                                       "plans='direct'",
                                       "num_threads=1",
                                       "num_threads=2",
                                       "third_party=False, compile=False",
                                       "python='/nowhere/bin/python3', num_threads=1",
                                       "",
                                       NULL};
static const char *const checkpoint_options[] = {
    "parameters=True", "parameters=False", "schedules=False", "schedules=True, parameters=False", "", NULL};
static const char *const names[] = {"w", "v", "u", "a.b", "\xc3\xbc", "", NULL};
static const char *const hyperparameters[] = {"lr",      "betas[0]", "betas[1]", "momentum", "weight_decay",
                                              "amsgrad", "eps",      "etas[1]",  "fused",    "max_iter",
                                              "lambd",   "lr[0]",    "params",   "step",     NULL};
static const char *const kinds[] = {"optimizers", "schedulers", "dtypes", "devices",
                                    "Adam",       "SGD",        "StepLR", NULL};
static const char *const dtypes[] = {"float16",   "bfloat16",   "float32", "float64",
                                     "complex64", "complex128", NULL};
static const int dtype_sizes[] = {2, 2, 4, 8, 8, 16};
static const char *const paths[] = {"a", "b", "c", "missing/a", ".", "", NULL}; /* in a folder of our own */
static const char *const devices[] = {"cpu", NULL};

/* What a number becomes. */
static const char *const absurd[] = {"1e308",
                                     "1e999",
                                     "-1e999",
                                     "(1e999-1e999)",
                                     "-0.0",
                                     "0",
                                     "-1",
                                     "1e-320",
                                     "9223372036854775808",
                                     "True",
                                     "None",
                                     "'x'",
                                     "b'x'",
                                     "'\\ud800'",
                                     "...",
                                     "1j",
                                     "()",
                                     "(1,)",
                                     "(1,2,)",
                                     "[1, 2, 3]",
                                     "{}",
                                     "{1: 2}",
                                     "Adam()",
                                     "f''",
                                     "0x7fffffff",
                                     "nan",
                                     "float('nan')",
                                     "1_0",
                                     "1e16",
                                     "0.9999999999999999",
                                     "99999999999999999999999999999999999999999999999999",
                                     NULL};

/* ---- who calls ---- */

/* Bytes with a page on either side that nobody may touch. */
struct arena {
    unsigned char *bytes;
    size_t size;
    unsigned char
        *shadow; /* the bytes as they were after the last call, and as the host has written them since */
    unsigned char *lent; /* DATA, GRAD, or both, for each byte */
};

enum { DIMENSIONS = 66 };

struct layout {
    int ndim;
    int64_t shape[DIMENSIONS], strides[DIMENSIONS];
};

/* A parameter that a bind has accepted. */
struct parameter {
    uint64_t name; /* hashed */
    int dtype;
    int64_t rows, columns, capacity; /* of a sparse one; rows 0: it is not sparse */
    size_t data, grad;               /* where in the arena */
    struct layout layout, grad_layout;
};

struct optimizer {
    int handle;
    int live;
    int shared;    /* by threads: nothing is known of its parameters, which lie in the middle of the arena */
    int stepping;  /* in how many calls that write to its parameters */
    int iterating; /* opt_iterate is in the middle of a step, before which the arrays were as in ... */
    unsigned char *start;
    struct arena arrays;
    struct arena indices;           /* a count first, and indices at the end: never written to */
    struct arena numbers;           /* a found_inf first, and a scale at the end: never written to */
    const float *scale, *found_inf; /* those it has been given */
    int count;
    struct parameter parameters[MOST];
};

/* One call, and where its strings and shapes lie: each ends where its arena does. */
struct frame {
    struct fuzzer *fuzzer;
    int which;
    struct optimizer *optimizer; /* NULL: the handle is no optimizer's */
    int handle;
    int inputs_used;
    struct arena inputs[8];
    struct arena output;
    size_t output_size;       /* bytes at its end that the call may write */
    int callbacks, cut_short; /* how often it has called us, and with which failure of ours that ended */
    char sentinel[160];       /* opt_error() before it */
    char text[1600];
};

/* A thread that calls. */
struct fuzzer {
    int number;
    uint64_t random;
    long calls;
    struct optimizer pool[LIVE];
    int stale[32]; /* handles that are no more */
    int depth;
    struct frame frames[DEPTH];
    _Atomic time_t since; /* when the call that runs began */
    char recent[RECENT][400];
    double slowest;
    char slowest_call[400]; /* a call may take long without an end in sight for the watch to see */
    unsigned char small[2 * ARENA], wild[2 * ARENA];
    char text[GIANT + 1];
    unsigned char saved[ARENA]; /* a checkpoint, of whichever optimizer */
    size_t saved_size;
    int saved_by; /* its handle, and of a file ... */
    int file_by;
    char file[40];
};

static struct fuzzer fuzzers[1 + THREADS];
static struct optimizer shared[SHARED];
static _Atomic int shared_handles[SHARED];
static _Thread_local struct fuzzer *self;
static unsigned long long seed;
static int quiet;
static const int cookie = 42; /* the user of every callback */

/* ---- failures ---- */

static void tell(struct fuzzer *f, const char *why)
{
    static atomic_flag told = ATOMIC_FLAG_INIT;
    if (atomic_flag_test_and_set(&told))
        for (;;)
            pause(); /* another thread tells, and ends the process */
    dprintf(fileno(check_log), "\nfuzz: %s\n  --seed %llu, thread %d, call %ld\n", why, seed, f->number,
            f->calls);
    for (long i = f->calls - RECENT; i < f->calls; i++)
        if (i >= 0 && f->recent[i % RECENT][0])
            dprintf(fileno(check_log), "  before: %s\n", f->recent[i % RECENT]);
    for (int i = 0; i < f->depth; i++)
        dprintf(fileno(check_log), "  %s: %s\n", i ? "in it" : "now", f->frames[i].text);
}

__attribute__((noreturn, format(printf, 2, 3))) static void failed(struct fuzzer *f, const char *format, ...)
{
    char why[1500];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(why, sizeof why, format, arguments);
    va_end(arguments);
    tell(f, why);
    dprintf(fileno(check_log), "  opt_error(): '%s'\n%s\n", opt_error(), opt_traceback());
    _exit(1);
}

static void crashed(int number)
{
    char why[60];
    snprintf(why, sizeof why, "signal %d", number);
    signal(number, SIG_DFL);
    if (self)
        tell(self, why);
    raise(number);
}

/* Let a stack that has run over be told of too. */
static void use_signal_stack(void)
{
    static _Thread_local char memory[65536];
    const stack_t stack = {.ss_sp = memory, .ss_size = sizeof memory};
    CHECK(sigaltstack(&stack, NULL) == 0);
}

static void watch_for_crashes(void)
{
    const int signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT};
    struct sigaction action = {.sa_handler = crashed, .sa_flags = SA_ONSTACK};
    for (size_t i = 0; i < sizeof signals / sizeof *signals; i++)
        CHECK(sigaction(signals[i], &action, NULL) == 0);
}

/* ---- chance ---- */

static uint64_t next(struct fuzzer *f)
{
    uint64_t z = f->random += 0x9e3779b97f4a7c15; /* splitmix64 */
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

static int below(struct fuzzer *f, size_t n) { return (int)(next(f) % n); }

static int one_in(struct fuzzer *f, size_t n) { return below(f, n) == 0; }

static const char *any(struct fuzzer *f, const char *const *table)
{
    size_t count = 0;
    while (table[count])
        count++;
    return table[below(f, count)];
}

static int64_t odd_integer(struct fuzzer *f)
{
    const int64_t odd[] = {
        0, -1, 1, -2, INT_MAX, INT_MIN, INT64_MAX, INT64_MIN, INT64_MAX / 8, INT64_C(1) << 44};
    return odd[below(f, sizeof odd / sizeof *odd)];
}

static double any_double(struct fuzzer *f)
{
    const double odd[] = {0, -0.0, -1, 1e308, -1e308, 1e-320, INFINITY, -INFINITY, NAN};
    return one_in(f, 4) ? odd[below(f, sizeof odd / sizeof *odd)] : below(f, 400) / 100.0;
}

/* ---- memory ---- */

static void make_arena(struct arena *arena, size_t size)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    unsigned char *all = mmap(NULL, size + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(all != MAP_FAILED && mprotect(all + page, size, PROT_READ | PROT_WRITE) == 0);
    *arena = (struct arena){.bytes = all + page, .size = size};
}

static void make_watched_arena(struct arena *arena, size_t size)
{
    make_arena(arena, size);
    arena->shadow = calloc(size, 1);
    arena->lent = calloc(size, 1);
    CHECK(arena->shadow && arena->lent);
}

/* Fill in values that are small numbers in every dtype: 16 bits each from 0x3C00 to 0x3FFF, and a sign. */
static void make_values(struct fuzzer *f)
{
    for (size_t i = 0; i < sizeof f->small; i += 2) {
        unsigned lane = (unsigned)(0x3C00 + below(f, 0x400)) ^ (one_in(f, 2) ? 0x8000u : 0);
        f->small[i] = (unsigned char)lane, f->small[i + 1] = (unsigned char)(lane >> 8);
        f->wild[i] = (unsigned char)next(f), f->wild[i + 1] = (unsigned char)next(f);
    }
}

/* Write as the host does, to bytes that are lent as `kind` and nothing else. */
static void scribble(struct fuzzer *f, struct optimizer *o, int kind)
{
    const unsigned char *values = (one_in(f, 12) ? f->wild : f->small) + 16 * below(f, ARENA / 16);
    struct arena *arena = &o->arrays;
    for (size_t i = 0; i < arena->size; i++)
        if (o->shared ? i >= ARENA / 4 && i < 3 * ARENA / 4 : arena->lent[i] == kind)
            arena->bytes[i] = arena->shadow[i] = values[i];
}

/* Say which rows have a gradient; what is in the arena then is the host's. */
static void scribble_indices(struct fuzzer *f, struct optimizer *o)
{
    struct arena *arena = &o->indices;
    for (int i = 0; i < o->count; i++) {
        const struct parameter *p = &o->parameters[i];
        if (!p->rows)
            continue;
        int64_t count = one_in(f, 8) ? odd_integer(f) : below(f, (size_t)p->capacity + 1);
        memcpy(arena->bytes, &count, sizeof count);
        for (int64_t j = 0; j < p->capacity; j++) {
            int64_t row = one_in(f, 40) ? odd_integer(f) : below(f, (size_t)p->rows);
            memcpy(arena->bytes + arena->size - (size_t)(p->capacity - j) * sizeof row, &row, sizeof row);
        }
    }
    memcpy(arena->shadow, arena->bytes, arena->size);
}

static float *scale_of(struct optimizer *o)
{
    return (float *)(void *)(o->numbers.bytes + o->numbers.size - sizeof(float));
}

static float *found_inf_of(struct optimizer *o) { return (float *)(void *)o->numbers.bytes; }

/* Choose another scale, and whether the next steps are left out: 1 says so, as torch.amp.GradScaler does. */
static void scribble_numbers(struct fuzzer *f, struct optimizer *o)
{
    const float scales[] = {1, 2, 1024, 0.5f, -1, 0, INFINITY, NAN, 1e-40f};
    *scale_of(o) = scales[below(f, sizeof scales / sizeof *scales)];
    *found_inf_of(o) = (float)one_in(f, 3);
    memcpy(o->numbers.shadow, o->numbers.bytes, o->numbers.size);
}

/* ---- what layouts mean ---- */

/* Return how many elements there are from the first to the last; INT64_MAX if more than can be. */
static int64_t extent(const struct layout *l)
{
    int64_t last = 0, count = 1;
    for (int i = 0; i < l->ndim; i++) {
        int64_t step;
        if (l->shape[i] <= 0)
            return 0;
        if (__builtin_mul_overflow(l->shape[i] - 1, l->strides[i], &step) ||
            __builtin_add_overflow(last, step, &last) || __builtin_mul_overflow(count, l->shape[i], &count))
            return INT64_MAX;
    }
    return last < 0 ? 0 : last < INT64_MAX ? last + 1 : INT64_MAX;
}

static void set_row_major(struct layout *l)
{
    int64_t step = 1;
    for (int i = l->ndim; i-- > 0;) {
        l->strides[i] = step;
        if (__builtin_mul_overflow(step, l->shape[i] > 0 ? l->shape[i] : 1, &step))
            step = INT64_MAX;
    }
}

static int64_t elements(const struct layout *l)
{
    int64_t count = 1;
    for (int i = 0; i < l->ndim; i++)
        count *= l->shape[i];
    return count;
}

/* Mark the bytes of an array, of which no two elements may share any. */
static void mark(struct fuzzer *f, unsigned char *lent, size_t offset, const struct layout *l, int size,
                 int kind)
{
    int64_t at[DIMENSIONS] = {0};
    static _Thread_local unsigned char seen[ARENA];
    memset(seen, 0, sizeof seen);
    for (int64_t n = elements(l); n > 0; n--) {
        size_t where = offset;
        for (int i = 0; i < l->ndim; i++)
            where += (size_t)(at[i] * l->strides[i]) * (size_t)size;
        if (seen[where])
            failed(f, "a bind has taken elements that share memory");
        memset(seen + where, 1, (size_t)size);
        for (int i = 0; i < size; i++)
            lent[where + (size_t)i] |= (unsigned char)kind;
        for (int i = l->ndim; i-- > 0 && ++at[i] == l->shape[i];)
            at[i] = 0;
    }
}

static void mark_all(struct fuzzer *f, struct optimizer *o)
{
    memset(o->arrays.lent, 0, o->arrays.size);
    for (int i = 0; i < o->count; i++) {
        const struct parameter *p = &o->parameters[i];
        mark(f, o->arrays.lent, p->data, &p->layout, dtype_sizes[p->dtype], DATA);
        mark(f, o->arrays.lent, p->grad, &p->grad_layout, dtype_sizes[p->dtype], GRAD);
    }
}

/* ---- arguments ---- */

/* Copy what a call gets to the end of an arena of its own, or NULL. */
static const void *lend(struct frame *c, const void *bytes, size_t size)
{
    if (!bytes)
        return NULL;
    struct arena *arena = &c->inputs[c->inputs_used++];
    return memcpy(arena->bytes + arena->size - size, bytes, size);
}

/* Some options make PyTorch allocate or compute without an end, as they say. */
static int asks_for_too_much(const char *text)
{
    if (!strstr(text, "max_iter") && !strstr(text, "history_size") && !strstr(text, "LBFGS"))
        return 0;
    for (size_t digits = 0; *text; text++) {
        digits = *text >= '0' && *text <= '9' ? digits + 1 : 0;
        if (digits > 2)
            return 1;
    }
    return 0;
}

static void replace(char *text, size_t at, size_t length, const char *by)
{
    char rest[4096];
    snprintf(rest, sizeof rest, "%s", text + at + length);
    snprintf(text + at, 4096 - at, "%s%s", by, rest);
}

static void mutate(struct fuzzer *f, char *text, const char *const *table)
{
    size_t length = strlen(text), at = length ? (size_t)below(f, length) : 0;
    size_t some = length ? (size_t)below(f, length - at) : 0;
    char byte[] = {(char)(1 + below(f, 255)), '\0'};
    char piece[512];
    switch (below(f, 8)) {
    case 0:
        if (length)
            text[at] ^= (char)(1 << below(f, 7));
        break;
    case 1:
        text[at] = '\0';
        break;
    case 2:
        replace(text, at, some, "");
        break;
    case 3:
        snprintf(piece, sizeof piece, "%.*s", (int)some, text + at);
        replace(text, at, 0, piece);
        break;
    case 4: {
        const char *other = any(f, one_in(f, 3) ? schedulers : table);
        replace(text, at, length - at, other + below(f, strlen(other) + 1));
        break;
    }
    case 5:
        replace(text, at, 0, one_in(f, 2) ? any(f, absurd) : byte);
        break;
    default: /* a number, or what comes next */
        at += strcspn(text + at, "0123456789");
        replace(text, at, strspn(text + at, "0123456789.e-"), any(f, absurd));
    }
}

static void make_deep(struct fuzzer *f, char *text)
{
    const char *const openers[] = {"(",       "[",   "{",    "-",  "A(",     "A(x=",  "Adam([", "not ",
                                   "lambda:", "1**", "{1:",  "*",  "1,",     "1 if ", "f'{",    "'",
                                   "\"",      "#",   "A(**", "x=", "x for ", NULL};
    text[0] = '\0';
    if (one_in(f, 2))
        strcpy(text, any(f, optimizers)), text[strcspn(text, "=") + 1] = '\0';
    const char *opener = any(f, openers);
    int mixed = one_in(f, 3);
    for (int n = 1 + below(f, one_in(f, 3) ? 800 : 60); n > 0; n--)
        strcat(text, mixed ? any(f, openers) : opener);
    strcat(text, any(f, absurd));
    for (int n = below(f, 60); n > 0; n--)
        strcat(text, mixed ? "])" : ")");
}

static void make_giant(struct fuzzer *f, char *text)
{
    const char *const units[] = {"A", "(", "a=1,", ",", "'", " ", "9", "\xc3\xbc", "\xff", "#", "\\", NULL};
    const char *unit = any(f, units), *head = one_in(f, 2) ? any(f, optimizers) : "";
    size_t size = one_in(f, 4) ? GIANT - 200 : (size_t)below(f, 70000), length = strlen(unit);
    char *end = text + strlen(strcpy(text, head));
    for (size_t n = 0; n + length < size; n += length)
        end = (char *)memcpy(end, unit, length) + length;
    *end = '\0';
}

/* Make a string: mostly one of a table. */
static const char *a_string(struct frame *c, const char *const *table)
{
    struct fuzzer *f = c->fuzzer;
    char *text = f->text;
    int way = below(f, 400);
    strcpy(text, any(f, table));
    if (way < 280)
        ;
    else if (way < 282)
        return NULL;
    else if (way < 286)
        text[0] = '\0';
    else if (way < 288)
        make_giant(f, text);
    else if (way < 294)
        make_deep(f, text);
    else if (way < 300)
        for (int i = 0, n = below(f, 60); i <= n; i++)
            text[i] = (char)(i < n ? 1 + below(f, 255) : 0);
    else if (way < 306)
        replace(text, (size_t)below(f, strlen(text) + 1), 0, "\xf0\x9f\xff");
    else
        for (int n = 1 + below(f, 3); n > 0; n--)
            mutate(f, text, table);
    if (asks_for_too_much(text) ||
        (table == settings && way >= 280 && (strstr(text, "com") || strstr(text, "third"))))
        strcpy(text, any(f, table));
    for (char *slash = text; table == paths && way >= 280 && (slash = strchr(slash, '/'));)
        *slash = '_'; /* files stay in the folder */
    return lend(c, text, strlen(text) + 1);
}

/* Where a string is one that is known: its number, or -1. */
static int find(const char *const *table, const char *text)
{
    for (int i = 0; text && table[i]; i++)
        if (strcmp(table[i], text) == 0)
            return i;
    return -1;
}

static uint64_t hash(const char *text)
{
    uint64_t h = 14695981039346656037u;
    for (; *text; text++)
        h = (h ^ (unsigned char)*text) * 1099511628211u;
    return h;
}

static struct parameter *find_parameter(struct optimizer *o, const char *name)
{
    for (int i = 0; o && name && i < o->count; i++)
        if (o->parameters[i].name == hash(name))
            return &o->parameters[i];
    return NULL;
}

static void make_strides(struct fuzzer *f, struct layout *l)
{
    set_row_major(l);
    int way = below(f, 8);
    if (way == 0 && l->ndim > 1) { /* columns first */
        int64_t step = 1;
        for (int i = 0; i < l->ndim; i++)
            l->strides[i] = step, step *= l->shape[i] > 0 ? l->shape[i] : 1;
    } else if (way == 1) /* gaps */
        for (int i = 0, by = 2 + below(f, 3); i < l->ndim; i++)
            l->strides[i] *= by;
    else if (way == 2)
        for (int i = 0; i < l->ndim; i++)
            l->strides[i] = one_in(f, 6) ? odd_integer(f) : below(f, 40);
}

static void make_layout(struct fuzzer *f, struct layout *l)
{
    memset(l, 0, sizeof *l);
    l->ndim = below(f, 4);
    if (one_in(f, 30))
        l->ndim = below(f, DIMENSIONS + 1);
    for (int i = 0; i < l->ndim; i++) {
        l->shape[i] =
            l->ndim == 1 ? 1 + below(f, one_in(f, 8) ? 2000 : 30) : 1 + below(f, l->ndim < 5 ? 7 : 2);
        if (l->ndim > 16)
            l->shape[i] = 1; /* else too many for the arena */
        if (one_in(f, 40))
            l->shape[i] = odd_integer(f);
    }
    make_strides(f, l);
}

/* Choose where an array of so many bytes lies: at either end of the arena, in between, or on another. */
static size_t a_place(struct frame *c, int64_t bytes, int size)
{
    struct fuzzer *f = c->fuzzer;
    const struct optimizer *o = c->optimizer;
    if (bytes > ARENA)
        return 0;
    size_t room = ARENA - (size_t)bytes;
    size_t between = (size_t)below(f, room / (size_t)size + 1) * (size_t)size;
    size_t choices[] = {0, room, between, between, between};
    if (o && o->count && one_in(f, 6)) {
        const struct parameter *p = &o->parameters[below(f, (size_t)o->count)];
        choices[0] = p->data, choices[1] = p->grad, choices[2] = p->data + (size_t)size;
    }
    if (one_in(f, 40))
        choices[0] = between + (size_t)below(f, 8); /* seldom aligned */
    size_t place = choices[below(f, 5)];
    place = place <= room ? place : between;
    return place;
}

static int is_inside(size_t place, int64_t count, int size)
{
    return count <= ARENA && place + (size_t)count * (size_t)size <= ARENA;
}

/* ---- what is called, for people ---- */

static const char *quoted(const char *text)
{
    static _Thread_local char places[4][520];
    static _Thread_local int turn;
    char *place = places[turn++ % 4], *end = place;
    if (!text)
        return "NULL";
    *end++ = '"';
    for (const char *s = text; *s && end - place < 480; s++)
        end += (unsigned char)*s < ' ' || (unsigned char)*s > '~'
                   ? sprintf(end, "\\x%02x", (unsigned char)*s)
                   : sprintf(end, *s == '"' ? "\\\"" : "%c", *s);
    sprintf(end, strlen(text) > 480 ? "\"... (%zu bytes)" : "\"", strlen(text));
    return place;
}

static const char *listed(const int64_t *values, int count)
{
    static _Thread_local char places[3][600];
    static _Thread_local int turn;
    char *place = places[turn++ % 3];
    if (!values)
        return "NULL";
    char *end = place + sprintf(place, "{");
    for (int i = 0; i < count && end - place < 540; i++)
        end += sprintf(end, i ? ", %lld" : "%lld", (long long)values[i]);
    strcpy(end, end - place < 540 ? "}" : ", ...}");
    return place;
}

__attribute__((format(printf, 2, 3))) static void note(struct frame *c, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(c->text, sizeof c->text, format, arguments);
    va_end(arguments);
}

/* ---- functions of ours that are called ---- */

static int make_call(struct fuzzer *f);

/* Write gradients, call the API, return something odd: whatever a host may do. */
static int callback(void *user, double *value)
{
    struct fuzzer *f = self;
    if (!f || !f->depth || user != &cookie)
        failed(f ? f : &fuzzers[0], "a callback with another user, or on a thread that made no call");
    struct frame *c = &f->frames[f->depth - 1];
    if (c->callbacks++ == EVALUATIONS)
        return c->cut_short = -999;
    if (c->optimizer && one_in(f, 2))
        scribble(f, c->optimizer, GRAD);
    if (f->depth < DEPTH && one_in(f, 4))
        make_call(f);
    *value = any_double(f);
    const int odd[] = {INT_MAX, 1, -1, -2, -3, -4, -5, -6, -7, -8, -1000, INT_MIN};
    int status = one_in(f, 8) ? odd[below(f, sizeof odd / sizeof *odd)] : 0;
    if (status < 0)
        c->cut_short = status;
    return status;
}

static opt_callback a_callback(struct frame *c) { return one_in(c->fuzzer, 50) ? NULL : callback; }

/* Return where a call may write a result, at the end of memory; NULL now and then. */
static double *a_result(struct frame *c)
{
    if (one_in(c->fuzzer, 12))
        return NULL;
    c->output_size = sizeof(double);
    return (double *)(void *)(c->output.bytes + c->output.size - sizeof(double));
}

static int a_group(struct frame *c)
{
    return one_in(c->fuzzer, 6) ? (int)odd_integer(c->fuzzer) : below(c->fuzzer, 3) - 1;
}

static int is_scaled(const struct optimizer *o) { return o && (o->scale || o->found_inf); }

/* ---- the calls, one function of the API each ---- */

static void forget(struct fuzzer *f, struct optimizer *o)
{
    f->stale[below(f, 32)] = o->handle;
    o->live = o->iterating = o->count = 0;
    o->scale = o->found_inf = NULL;
    memset(o->arrays.lent, 0, o->arrays.size);
}

/* Free an optimizer that has taken arrays which are not there. */
static void free_at_once(struct frame *c)
{
    if (opt_free(c->handle) < 0)
        failed(c->fuzzer, "opt_free fails");
    forget(c->fuzzer, c->optimizer);
}

static int try_create(struct frame *c)
{
    struct fuzzer *f = c->fuzzer;
    const char *spec = a_string(c, optimizers);
    note(c, "opt_create(%s)", quoted(spec));
    int opt = opt_create(spec);
    struct optimizer *o = f->pool;
    for (int i = 0; i < LIVE; i++) {
        if (opt > 0 && f->pool[i].live && f->pool[i].handle == opt)
            failed(f, "the handle %d is another optimizer's", opt);
        if (!f->pool[i].live)
            o = &f->pool[i];
    }
    if (opt > 0 && !o->live)
        o->live = 1, o->handle = opt;
    else if (opt > 0)
        CHECK(opt_free(opt) == OPT_OK);
    return opt;
}

static int try_free(struct frame *c)
{
    note(c, "opt_free(%d)", c->handle);
    int status = opt_free(c->handle);
    if (status == OPT_OK && c->optimizer && c->optimizer->shared) {
        int i = (int)(c->optimizer - shared);
        shared_handles[i] = opt_create(optimizers[below(c->fuzzer, 12)]);
        CHECK(shared_handles[i] > 0);
    }
    return status; /* the rest is done when its arrays have been looked at */
}

/* On an optimizer that other threads step meanwhile, only what is there. */
static int try_bind_shared(struct frame *c)
{
    struct fuzzer *f = c->fuzzer;
    unsigned char *middle = c->optimizer->arrays.bytes + ARENA / 4;
    int n = 1 + below(f, 500), data = 16 * below(f, 500), grad = 16 * below(f, 500);
    const char *name = a_string(c, names), *dtype = a_string(c, dtypes);
    note(c, "opt_bind(%d, %s, %s, %d, middle + %d, middle + %d)", c->handle, quoted(name), quoted(dtype), n,
         data, grad);
    return opt_bind(c->handle, name, dtype, n, middle + data, middle + grad);
}

/* See that what a bind has accepted can be, and keep it in mind. */
static void accepted(struct frame *c, const char *name, const char *dtype, struct parameter *p)
{
    struct fuzzer *f = c->fuzzer;
    struct optimizer *o = c->optimizer;
    p->name = hash(name);
    p->dtype = find(dtypes, dtype);
    if (!o || p->dtype < 0)
        failed(f, "a bind with a handle or a dtype that is none has succeeded");
    int size = dtype_sizes[p->dtype];
    for (int i = 0; i < p->layout.ndim; i++)
        if (p->layout.shape[i] < 0 || p->layout.strides[i] < 0 || p->grad_layout.strides[i] < 0)
            failed(f, "a bind has taken a negative size or stride");
    if (p->data % (size_t)(size < 8 ? size : 8) || p->grad % (size_t)(size < 8 ? size : 8))
        failed(f, "a bind has taken an address that is not aligned");
    struct parameter *known = find_parameter(o, name);
    int64_t indices = p->rows ? p->capacity : 0;
    if (!is_inside(p->data, extent(&p->layout), size) || !is_inside(p->grad, extent(&p->grad_layout), size) ||
        indices > (int64_t)(o->indices.size / sizeof(int64_t)) - 1 || (!known && o->count == MOST)) {
        free_at_once(c);
        return;
    }
    *(known ? known : &o->parameters[o->count++]) = *p;
    mark_all(f, o);
}

/* Choose the dtype and the layouts of a parameter: the old ones, often, where a name is bound again. */
static void make_parameter(struct frame *c, const struct parameter *known, struct parameter *p)
{
    struct fuzzer *f = c->fuzzer;
    memset(p, 0, sizeof *p);
    p->dtype = below(f, 6);
    make_layout(f, &p->layout);
    if (known && !one_in(f, 4)) {
        p->dtype = known->dtype, p->layout = known->layout;
        make_strides(f, &p->layout);
    }
    p->grad_layout = p->layout;
    if (one_in(f, 4))
        make_strides(f, &p->grad_layout);
}

static void make_places(struct frame *c, struct parameter *p)
{
    int size = dtype_sizes[p->dtype];
    int64_t data = extent(&p->layout), grad = extent(&p->grad_layout);
    p->data = a_place(c, data > ARENA ? INT64_MAX : data * size, size);
    p->grad = a_place(c, grad > ARENA ? INT64_MAX : grad * size, size);
}

static void *at(struct frame *c, size_t place)
{
    unsigned char *bytes = (c->optimizer ? c->optimizer : c->fuzzer->pool)->arrays.bytes;
    return one_in(c->fuzzer, 100) ? NULL : bytes + place;
}

/* Name the dtype, or something else. */
static const char *a_dtype(struct frame *c, const struct parameter *p)
{
    return one_in(c->fuzzer, 20) ? a_string(c, dtypes) : dtypes[p->dtype];
}

static int try_bind(struct frame *c)
{
    if (c->optimizer && c->optimizer->shared)
        return try_bind_shared(c);
    struct parameter p;
    const char *name = a_string(c, names);
    make_parameter(c, find_parameter(c->optimizer, name), &p);
    p.layout.shape[0] = p.layout.ndim ? p.layout.shape[0] : odd_integer(c->fuzzer);
    p.layout.ndim = 1;
    set_row_major(&p.layout);
    p.grad_layout = p.layout;
    make_places(c, &p);
    const char *dtype = a_dtype(c, &p);
    void *data = at(c, p.data), *grad = at(c, p.grad);
    note(c, "opt_bind(%d, %s, %s, %lld, arena + %zu: %p, arena + %zu: %p)", c->handle, quoted(name),
         quoted(dtype), (long long)p.layout.shape[0], p.data, data, p.grad, grad);
    int status = opt_bind(c->handle, name, dtype, p.layout.shape[0], data, grad);
    if (status == OPT_OK)
        accepted(c, name, dtype, &p);
    return status;
}

/* Lend a shape or strides, of so many values as there are. */
static const int64_t *lend_integers(struct frame *c, const int64_t *values, int ndim)
{
    return lend(c, values, (size_t)(ndim < 0 ? 0 : ndim > DIMENSIONS ? DIMENSIONS : ndim) * sizeof *values);
}

static int try_bind_nd(struct frame *c)
{
    if (c->optimizer && c->optimizer->shared)
        return try_bind_shared(c);
    struct fuzzer *f = c->fuzzer;
    struct parameter p;
    const char *name = a_string(c, names);
    make_parameter(c, find_parameter(c->optimizer, name), &p);
    struct layout rows = p.layout;
    set_row_major(&rows);
    int is_plain = memcmp(&rows, &p.layout, sizeof rows) == 0;
    make_places(c, &p);
    const char *dtype = a_dtype(c, &p);
    const char *device = one_in(f, 20) ? a_string(c, devices) : "cpu";
    int ndim = one_in(f, 60) ? (int)odd_integer(f) : p.layout.ndim, size = p.layout.ndim;
    const int64_t *shape = one_in(f, 60) ? NULL : lend_integers(c, p.layout.shape, size);
    const int64_t *strides = is_plain && one_in(f, 2) ? NULL : lend_integers(c, p.layout.strides, size);
    const int64_t *grad_strides = memcmp(&rows, &p.grad_layout, sizeof rows) == 0 && one_in(f, 2)
                                      ? NULL
                                      : lend_integers(c, p.grad_layout.strides, size);
    if (ndim != size && ndim >= 0 && ndim <= 64)
        ndim = size; /* else it would read what is not there, as told */
    void *data = at(c, p.data), *grad = at(c, p.grad);
    note(c, "opt_bind_nd(%d, %s, %s, %s, %d, %s, arena + %zu: %p, %s, arena + %zu: %p, %s)", c->handle,
         quoted(name), quoted(dtype), quoted(device), ndim, listed(shape, size), p.data, data,
         listed(strides, size), p.grad, grad, listed(grad_strides, size));
    int status = opt_bind_nd(c->handle, name, dtype, device, ndim, shape, data, strides, grad, grad_strides);
    if (status == OPT_OK && ndim != size)
        failed(f, "opt_bind_nd has taken ndim %d", ndim);
    if (status == OPT_OK)
        accepted(c, name, dtype, &p);
    return status;
}

static int try_bind_sparse(struct frame *c)
{
    if (c->optimizer && c->optimizer->shared)
        return try_bind_shared(c);
    struct fuzzer *f = c->fuzzer;
    struct parameter p = {.dtype = below(f, 6), .rows = 1 + below(f, 9), .columns = 1 + below(f, 6)};
    const char *name = a_string(c, names);
    const struct parameter *known = find_parameter(c->optimizer, name);
    if (known && known->layout.ndim == 2 && !one_in(f, 4))
        p.dtype = known->dtype, p.rows = known->layout.shape[0], p.columns = known->layout.shape[1];
    p.capacity = 1 + below(f, 8);
    int64_t *odd[] = {&p.rows, &p.columns, &p.capacity};
    if (one_in(f, 8))
        *odd[below(f, 3)] = odd_integer(f);
    p.layout = (struct layout){.ndim = 2, .shape = {p.rows, p.columns}};
    p.grad_layout = (struct layout){.ndim = 2, .shape = {p.capacity, p.columns}};
    set_row_major(&p.layout), set_row_major(&p.grad_layout);
    make_places(c, &p);
    struct arena *indices = &(c->optimizer ? c->optimizer : f->pool)->indices;
    size_t used = p.capacity > 0 && p.capacity < 64 ? (size_t)p.capacity * sizeof(int64_t) : 0;
    const void *count = one_in(f, 60) ? NULL : indices->bytes + one_in(f, 60);
    const void *rows = one_in(f, 60) ? NULL : indices->bytes + indices->size - used - one_in(f, 60);
    void *data = at(c, p.data), *grad = at(c, p.grad);
    const char *dtype = a_dtype(c, &p);
    note(c, "opt_bind_sparse(%d, %s, %s, %lld, %lld, arena + %zu: %p, %lld, %p, %p, arena + %zu: %p)",
         c->handle, quoted(name), quoted(dtype), (long long)p.rows, (long long)p.columns, p.data, data,
         (long long)p.capacity, count, rows, p.grad, grad);
    int status =
        opt_bind_sparse(c->handle, name, dtype, p.rows, p.columns, data, p.capacity, count, rows, grad);
    if (status == OPT_OK && ((uintptr_t)count % 8 || (uintptr_t)rows % 8))
        failed(f, "opt_bind_sparse has taken a count or indices that are not aligned");
    if (status == OPT_OK)
        accepted(c, name, dtype, &p);
    return status;
}

static int try_group(struct frame *c)
{
    const char *text = a_string(c, options);
    note(c, "opt_group(%d, %s)", c->handle, quoted(text));
    return opt_group(c->handle, text);
}

static int try_set(struct frame *c)
{
    int group = a_group(c);
    const char *text = a_string(c, options);
    note(c, "opt_set(%d, %d, %s)", c->handle, group, quoted(text));
    return opt_set(c->handle, group, text);
}

static int try_get(struct frame *c)
{
    int group = a_group(c);
    const char *name = a_string(c, hyperparameters);
    double *value = a_result(c);
    note(c, "opt_get(%d, %d, %s, %p)", c->handle, group, quoted(name), (void *)value);
    return opt_get(c->handle, group, name, value);
}

static int try_step(struct frame *c)
{
    note(c, "opt_step(%d)", c->handle);
    return opt_step(c->handle);
}

/* Arrays for one call, of an optimizer that is made for it, or none at all. */
static int try_step_lent(struct frame *c, int is_float64)
{
    struct fuzzer *f = c->fuzzer;
    int64_t n = 1 + below(f, 100);
    size_t value = is_float64 ? sizeof(double) : sizeof(float);
    static _Thread_local unsigned char zeros[100 * sizeof(double)];
    unsigned char *data = c->output.bytes + c->output.size - (size_t)n * value;
    const void *grad = one_in(f, 20) ? NULL : lend(c, zeros, (size_t)n * value);
    c->output_size = (size_t)n * value;
    int opt = opt_create("Adam(lr=0.1)");
    if (opt_bind(opt, "w", is_float64 ? "float64" : "float32", n, NULL, NULL) < 0)
        failed(f, "opt_bind of %lld values that come later: %s", (long long)n, opt_error());
    note(c, "opt_step_f%d(%d, %p, %p)", is_float64 ? 64 : 32, opt, (void *)data, grad);
    void *lent = one_in(f, 20) ? NULL : data;
    int status = is_float64 ? opt_step_f64(opt, lent, grad) : opt_step_f32(opt, lent, grad);
    opt_free(opt);
    return status;
}

static int try_step_f64(struct frame *c) { return try_step_lent(c, 1); }

static int try_step_f32(struct frame *c) { return try_step_lent(c, 0); }

/* See that a step with a closure is refused where gradients are scaled. */
static int unscaled(struct frame *c, int status)
{
    if (status >= 0 && is_scaled(c->optimizer))
        failed(c->fuzzer, "a step with a closure has been made after opt_grad_scale");
    return status;
}

static int try_step_closure(struct frame *c)
{
    opt_callback closure = a_callback(c);
    double *loss = a_result(c);
    note(c, "opt_step_closure(%d, %s, &cookie, %p)", c->handle, closure ? "callback" : "NULL", (void *)loss);
    return unscaled(c, opt_step_closure(c->handle, closure, (void *)&cookie, loss));
}

static int try_iterate(struct frame *c)
{
    double loss = any_double(c->fuzzer);
    note(c, "opt_iterate(%d, %g)", c->handle, loss);
    return unscaled(c, opt_iterate(c->handle, loss));
}

static int try_zero_grad(struct frame *c)
{
    note(c, "opt_zero_grad(%d)", c->handle);
    return opt_zero_grad(c->handle);
}

static int try_clip_grad_norm(struct frame *c)
{
    double max_norm = any_double(c->fuzzer), norm_type = any_double(c->fuzzer), *norm = a_result(c);
    int strict = one_in(c->fuzzer, 3) ? (int)odd_integer(c->fuzzer) : 0;
    note(c, "opt_clip_grad_norm(%d, %g, %g, %d, %p)", c->handle, max_norm, norm_type, strict, (void *)norm);
    return opt_clip_grad_norm(c->handle, max_norm, norm_type, strict, norm);
}

static int try_clip_grad_value(struct frame *c)
{
    double value = any_double(c->fuzzer);
    note(c, "opt_clip_grad_value(%d, %g)", c->handle, value);
    return opt_clip_grad_value(c->handle, value);
}

static int try_schedule(struct frame *c)
{
    const char *spec = a_string(c, schedulers);
    note(c, "opt_schedule(%d, %s)", c->handle, quoted(spec));
    return opt_schedule(c->handle, spec);
}

static int try_schedule_callback(struct frame *c)
{
    const char *spec = one_in(c->fuzzer, 2) ? schedulers[below(c->fuzzer, 2)] : a_string(c, schedulers);
    opt_callback function = a_callback(c);
    note(c, "opt_schedule_callback(%d, %s, %s, &cookie)", c->handle, quoted(spec),
         function ? "callback" : "NULL");
    return opt_schedule_callback(c->handle, spec, function, (void *)&cookie);
}

static int try_schedule_step(struct frame *c)
{
    note(c, "opt_schedule_step(%d)", c->handle);
    return opt_schedule_step(c->handle);
}

static int try_schedule_step_metric(struct frame *c)
{
    double value = any_double(c->fuzzer);
    note(c, "opt_schedule_step_metric(%d, %g)", c->handle, value);
    return opt_schedule_step_metric(c->handle, value);
}

/* No parameter is on a GPU. */
static int try_stream(struct frame *c)
{
    struct fuzzer *f = c->fuzzer;
    void *const garbage[] = {f->small, f->small + 1, (void *)next(f), (void *)1, (void *)2, (void *)-1};
    void *stream = one_in(f, 3) ? NULL : garbage[below(f, sizeof garbage / sizeof *garbage)];
    note(c, "opt_stream(%d, %p)", c->handle, stream);
    int status = opt_stream(c->handle, stream);
    if (stream && c->optimizer && !c->optimizer->shared && status != OPT_ESTATE)
        failed(f, "opt_stream returned %d where nothing is on a GPU", status);
    return status;
}

static int try_grad_scale(struct frame *c)
{
    struct fuzzer *f = c->fuzzer;
    struct optimizer *o = c->optimizer, *owner = o ? o : f->pool;
    const float *scale = one_in(f, 2) ? scale_of(owner) : NULL;
    const float *found_inf = one_in(f, 2) ? found_inf_of(owner) : NULL;
    int odd = one_in(f, 10) ? 1 + below(f, 3) : 0, is_odd = odd && (scale || found_inf);
    if (one_in(f, 3))
        scale = found_inf = NULL, is_odd = 0;
    const void *a = scale ? (const char *)scale - odd : NULL;
    const void *b = found_inf ? (const char *)found_inf + odd : NULL;
    note(c, "opt_grad_scale(%d, %p, %p)", c->handle, a, b);
    int status = opt_grad_scale(c->handle, a, b);
    if (status == OPT_OK && is_odd)
        failed(f, "opt_grad_scale has taken an address that is not aligned");
    if (status == OPT_EINVAL && !strstr(opt_error(), "is not aligned"))
        failed(f, "opt_grad_scale refuses numbers that are there");
    if (status == OPT_OK && o && !o->shared)
        o->scale = scale, o->found_inf = found_inf;
    return status;
}

static int try_average(struct frame *c)
{
    const char *spec = a_string(c, averages);
    note(c, "opt_average(%d, %s)", c->handle, quoted(spec));
    return opt_average(c->handle, spec);
}

static int try_average_get(struct frame *c)
{
    struct optimizer *o = c->optimizer;
    const char *name = a_string(c, names);
    const struct parameter *p = find_parameter(o, name);
    c->output_size = p ? (size_t)(elements(&p->layout) * dtype_sizes[p->dtype]) : 0;
    if (o && o->shared)
        c->output_size = c->output.size;
    unsigned char *data = c->output.bytes + c->output.size - c->output_size;
    data = one_in(c->fuzzer, 40) ? NULL : one_in(c->fuzzer, 40) ? data - 1 : data;
    note(c, "opt_average_get(%d, %s, %p)", c->handle, quoted(name), (void *)data);
    return opt_average_get(c->handle, name, data);
}

static int try_average_swap(struct frame *c)
{
    note(c, "opt_average_swap(%d)", c->handle);
    return opt_average_swap(c->handle);
}

/* Mostly go back to the optimizer that has saved: those of others refuse its checkpoint. */
static int go_back(struct frame *c, int opt)
{
    for (int i = 0; i < LIVE && c->fuzzer->depth == 1; i++) {
        struct optimizer *o = &c->fuzzer->pool[i];
        if (o->live && o->handle == opt && !one_in(c->fuzzer, 4)) {
            c->optimizer = o, c->handle = opt;
            return 1;
        }
    }
    return 0;
}

static int try_checkpoint(struct frame *c)
{
    const char *text = a_string(c, checkpoint_options);
    note(c, "opt_checkpoint(%d, %s)", c->handle, quoted(text));
    return opt_checkpoint(c->handle, text);
}

static int try_attribute(struct frame *c)
{
    char name[sizeof c->fuzzer->text];
    const char *given = a_string(c, names);
    if (given)
        given = strcpy(name, given);
    const char *text = a_string(c, checkpoint_options);
    note(c, "opt_attribute(%d, %s, %s)", c->handle, quoted(given), quoted(text));
    return opt_attribute(c->handle, given, text);
}

static int try_attribute_get(struct frame *c)
{
    const char *name = a_string(c, names);
    note(c, "opt_attribute_get(%d, %s)", c->handle, quoted(name));
    const char *text = opt_attribute_get(c->handle, name);
    return text ? OPT_OK : NO_TEXT;
}

static int try_save(struct frame *c)
{
    const char *path = a_string(c, paths);
    note(c, "opt_save(%d, %s)", c->handle, quoted(path));
    int status = opt_save(c->handle, path);
    if (status == OPT_OK && strlen(path) < sizeof c->fuzzer->file)
        c->fuzzer->file_by = c->handle, strcpy(c->fuzzer->file, path);
    return status;
}

static int try_load(struct frame *c)
{
    const char *path = a_string(c, paths);
    if (go_back(c, c->fuzzer->file_by))
        path = c->fuzzer->file;
    note(c, "opt_load(%d, %s)", c->handle, quoted(path));
    return opt_load(c->handle, path);
}

static int try_save_memory(struct frame *c)
{
    struct fuzzer *f = c->fuzzer;
    int is_asked = one_in(f, 4);
    int64_t size = one_in(f, 8) ? below(f, ARENA) : ARENA;
    unsigned char *buffer = is_asked ? NULL : c->output.bytes + ARENA - size;
    if (one_in(f, 20))
        size = odd_integer(f) > 0 ? 0 : odd_integer(f) | INT64_MIN;
    note(c, "opt_save_memory(%d, %p, %lld)", c->handle, (void *)buffer, (long long)size);
    int64_t used = opt_save_memory(c->handle, buffer, size);
    if (used >= 0 && (used == 0 || used > (is_asked ? INT_MAX : size)))
        failed(f, "opt_save_memory returned %lld", (long long)used);
    if (used < 0)
        return (int)used;
    if (!is_asked) {
        f->saved_size = (size_t)used, f->saved_by = c->handle;
        memcpy(f->saved, buffer, f->saved_size);
        memset(buffer, 0xA5, f->saved_size); /* what is beyond must be as it was */
    }
    return OPT_OK;
}

/* Write a checkpoint, or something that has been one. */
static int try_load_memory(struct frame *c)
{
    struct fuzzer *f = c->fuzzer;
    static _Thread_local unsigned char bytes[ARENA];
    size_t size = f->saved_size;
    go_back(c, f->saved_by);
    memcpy(bytes, f->saved, size);
    int damage = one_in(f, 2) ? 0 : 1 + below(f, 4);
    if (damage == 1 && size)
        size = (size_t)below(f, size + 1);
    for (int n = damage > 1 && size ? 1 + below(f, 8) : 0; n > 0; n--)
        bytes[below(f, size)] ^= (unsigned char)(1 << below(f, 8));
    if (damage == 2) /* PyTorch's alone, without the seal that would tell */
        size = size > 60 ? size - 60 : size;
    if (damage == 3)
        memcpy(bytes, f->wild, size = (size_t)below(f, 200));
    const void *buffer = one_in(f, 40) ? NULL : lend(c, bytes, size);
    int64_t told = one_in(f, 40) ? (int64_t)(next(f) | (uint64_t)INT64_MIN) : (int64_t)size;
    note(c, "opt_load_memory(%d, %p, %lld), damage %d", c->handle, buffer, (long long)told, damage);
    return opt_load_memory(c->handle, buffer, told);
}

static int try_init(struct frame *c)
{
    const char *text = a_string(c, settings);
    note(c, "opt_init(%s)", quoted(text));
    return opt_init(text);
}

static void check_text(struct frame *c, const char *text);

static int checked(struct frame *c, const char *text, const char *end)
{
    if (!text)
        return NO_TEXT;
    check_text(c, text);
    size_t length = strlen(text);
    if (length && text[length - 1] != *end)
        failed(c->fuzzer, "a text ends with no newline: %s", quoted(text));
    return OPT_OK;
}

static int try_describe(struct frame *c)
{
    if (one_in(c->fuzzer, 20))
        c->handle = 0, c->optimizer = NULL;
    note(c, "opt_describe(%d)", c->handle);
    const char *text = opt_describe(c->handle);
    if (!text && (c->handle == 0 || (c->optimizer && !c->optimizer->shared)))
        failed(c->fuzzer, "opt_describe fails");
    return checked(c, text, "\n");
}

static int try_list(struct frame *c)
{
    const char *kind = a_string(c, kinds);
    note(c, "opt_list(%s)", quoted(kind));
    return checked(c, opt_list(kind), "\n");
}

static void ignore_line(void *user, int level, const char *line) { (void)user, (void)level, (void)line; }

static int try_log(struct frame *c)
{
    opt_log_function function = one_in(c->fuzzer, 2) ? ignore_line : NULL;
    note(c, "opt_log(%s)", function ? "ignore_line" : "NULL");
    return opt_log(function, NULL);
}

static int try_version(struct frame *c)
{
    note(c, "opt_version()");
    return strcmp(opt_version(), OPTPLUG_VERSION) == 0 ? OPT_OK : NO_TEXT;
}

static int try_error(struct frame *c)
{
    note(c, "opt_error()");
    return strcmp(opt_error(), c->sentinel) == 0 ? OPT_OK : NO_TEXT;
}

static int try_error_status(struct frame *c)
{
    note(c, "opt_error_status()");
    return opt_error_status() == OPT_EHANDLE ? OPT_OK : NO_TEXT; /* the sentinel's */
}

static int try_traceback(struct frame *c)
{
    note(c, "opt_traceback()");
    return strcmp(opt_traceback(), "") == 0 ? OPT_OK : NO_TEXT; /* the sentinel has none */
}

static int try_warning(struct frame *c)
{
    note(c, "opt_warning()");
    return checked(c, opt_warning(), "\n");
}

/* Every function: what it may write, whether it takes a handle, whether a callback is barred from calling it
 * on its own optimizer, and how often it is chosen. */
enum { HANDLE = 4, BARRED = 8 };
static const struct {
    const char *name;
    int (*try)(struct frame *);
    int flags, weight;
} functions[] = {
    {"opt_create", try_create, 0, 6},
    {"opt_bind", try_bind, HANDLE | BARRED, 8},
    {"opt_step", try_step, DATA | HANDLE | BARRED, 30},
    {"opt_free", try_free, DATA | HANDLE | BARRED, 2},
    {"opt_zero_grad", try_zero_grad, GRAD | HANDLE, 4},
    {"opt_clip_grad_norm", try_clip_grad_norm, GRAD | HANDLE, 5},
    {"opt_clip_grad_value", try_clip_grad_value, GRAD | HANDLE, 4},
    {"opt_get", try_get, HANDLE, 6},
    {"opt_set", try_set, HANDLE | BARRED, 5},
    {"opt_schedule", try_schedule, HANDLE | BARRED, 4},
    {"opt_schedule_step", try_schedule_step, HANDLE | BARRED, 6},
    {"opt_schedule_step_metric", try_schedule_step_metric, HANDLE | BARRED, 4},
    {"opt_error", try_error, 0, 1},
    {"opt_error_status", try_error_status, 0, 1},
    {"opt_warning", try_warning, 0, 2},
    {"opt_traceback", try_traceback, 0, 1},
    {"opt_bind_nd", try_bind_nd, HANDLE | BARRED, 14},
    {"opt_bind_sparse", try_bind_sparse, HANDLE | BARRED, 7},
    {"opt_step_f64", try_step_f64, 0, 2},
    {"opt_step_f32", try_step_f32, 0, 2},
    {"opt_group", try_group, HANDLE | BARRED, 3},
    {"opt_step_closure", try_step_closure, DATA | HANDLE | BARRED, 10},
    {"opt_iterate", try_iterate, DATA | HANDLE | BARRED, 16},
    {"opt_schedule_callback", try_schedule_callback, HANDLE | BARRED, 4},
    {"opt_stream", try_stream, HANDLE | BARRED, 2},
    {"opt_grad_scale", try_grad_scale, HANDLE | BARRED, 5},
    {"opt_average", try_average, HANDLE | BARRED, 2},
    {"opt_average_get", try_average_get, HANDLE, 4},
    {"opt_average_swap", try_average_swap, DATA | HANDLE | BARRED, 4},
    {"opt_checkpoint", try_checkpoint, HANDLE | BARRED, 1},
    {"opt_attribute", try_attribute, HANDLE | BARRED, 1},
    {"opt_attribute_get", try_attribute_get, HANDLE, 1},
    {"opt_save", try_save, HANDLE | BARRED, 1},
    {"opt_load", try_load, DATA | HANDLE | BARRED, 1},
    {"opt_save_memory", try_save_memory, HANDLE | BARRED, 3},
    {"opt_load_memory", try_load_memory, DATA | HANDLE | BARRED, 5},
    {"opt_init", try_init, 0, 2},
    {"opt_describe", try_describe, HANDLE, 4},
    {"opt_list", try_list, 0, 2},
    {"opt_log", try_log, 0, 1},
    {"opt_version", try_version, 0, 1},
};
enum { FUNCTIONS = sizeof functions / sizeof *functions };
static _Atomic long made[FUNCTIONS], refused[FUNCTIONS];

/* ---- what every call must leave ---- */

static size_t utf8_length(const unsigned char *s)
{
    static const unsigned char least[] = {0, 0, 0x80, 0, 0};
    size_t n = *s < 0x80                 ? 1
               : *s >= 0xC2 && *s < 0xE0 ? 2
               : (*s & 0xF0) == 0xE0     ? 3
               : *s >= 0xF0 && *s < 0xF5 ? 4
                                         : 0;
    unsigned low = n == 3 && *s == 0xE0 ? 0xA0 : n == 4 && *s == 0xF0 ? 0x90 : least[2];
    unsigned high = n == 3 && *s == 0xED ? 0x9F : n == 4 && *s == 0xF4 ? 0x8F : 0xBF;
    for (size_t i = 1; i < n; i++)
        if (s[i] < (i == 1 ? low : 0x80) || s[i] > (i == 1 ? high : 0xBF))
            return 0;
    return n;
}

static void check_text(struct frame *c, const char *text)
{
    for (const unsigned char *s = (const unsigned char *)text; *s;) {
        size_t n = utf8_length(s);
        if (!n)
            failed(c->fuzzer, "a text is not UTF-8: %s", quoted(text));
        s += n;
    }
}

static void check_message(struct frame *c, int status)
{
    const char *message = opt_error();
    check_text(c, message);
    check_text(c, opt_traceback());
    int told = opt_error_status();
    if (status < 0 && (status == NO_TEXT ? told < OPT_EIO || told >= 0 : told != status))
        failed(c->fuzzer, "opt_error_status() is %d after a call that returned %d", told, status);
    if (status >= 0) {
        if (!c->callbacks && strcmp(message, c->sentinel) != 0)
            failed(c->fuzzer, "a call that succeeds has left a message");
        return;
    }
    if (!message[0] || strcmp(message, c->sentinel) == 0)
        failed(c->fuzzer, "a call that fails has left no message");
    for (const char *s = message; *s; s++)
        if ((unsigned char)*s < ' ')
            failed(c->fuzzer, "a message has more than one line");
}

static void check_status(struct frame *c, int status)
{
    const char *name = functions[c->which].name;
    int is_iterate = strcmp(name, "opt_iterate") == 0, is_create = strcmp(name, "opt_create") == 0;
    if (c->cut_short && status != c->cut_short)
        failed(c->fuzzer, "%s returned %d where its callback had failed with %d", name, status, c->cut_short);
    if (status < OPT_EIO && status != NO_TEXT && status != c->cut_short)
        failed(c->fuzzer, "%s returned %d, which is no status", name, status);
    if (status > (is_create ? INT_MAX : is_iterate ? OPT_EVALUATE : OPT_OK) || (is_create && status == 0))
        failed(c->fuzzer, "%s returned %d", name, status);
    int flags = functions[c->which].flags;
    if (status >= 0 && !c->optimizer && c->handle && flags & HANDLE)
        failed(c->fuzzer, "%s has taken a handle that is none", name);
    for (int i = 0; i < c->fuzzer->depth - 1; i++)
        if (status >= 0 && c->optimizer && c->fuzzer->frames[i].optimizer == c->optimizer && flags & BARRED)
            failed(c->fuzzer, "%s does what no callback may", name);
}

/* Check one arena: bytes that the call may not write are as before.  While a step is under way, and calls
 * back, its parameters are in flux. */
static void check_arena(struct frame *c, struct arena *arena, int writes, int flux, int by_host)
{
    if (memcmp(arena->bytes, arena->shadow, arena->size) == 0)
        return;
    for (size_t i = 0; i < arena->size; i++) {
        int lent = arena->lent[i];
        if (arena->bytes[i] == arena->shadow[i] || lent & flux)
            continue;
        if (!(lent & writes) && !(by_host && lent == (DATA | GRAD)))
            failed(c->fuzzer, "byte %zu of the arena, %s, has changed from %02x to %02x", i,
                   lent == 0      ? "which is not lent"
                   : lent == DATA ? "a parameter's"
                   : lent == GRAD ? "a gradient's"
                                  : "a parameter's and a gradient's",
                   arena->shadow[i], arena->bytes[i]);
        arena->shadow[i] = arena->bytes[i];
    }
}

/* A step by opt_iterate that ends early leaves the parameters as they were before it. */
static void check_undone(struct frame *c)
{
    const struct optimizer *o = c->optimizer;
    for (size_t i = 0; i < o->arrays.size; i++)
        if (o->arrays.lent[i] == DATA && o->arrays.bytes[i] != o->start[i])
            failed(c->fuzzer, "byte %zu of the arena is not as before the step that has been given up", i);
}

/* A hyperparameter that is larger than a dtype can hold, by a spec or a schedule, or a schedule's momentum
 * for sparse gradients in half precision, is noticed in the middle of a step: docs/guarantees.md says so. */
static int is_half_made(int status)
{
    const char *const words[] = {"without overflow", "Numerical result out of range", "cadd_sparse"};
    for (size_t i = 0; status < 0 && i < sizeof words / sizeof *words; i++)
        if (strstr(opt_error(), words[i]))
            return 1;
    return 0;
}

static void check_arrays(struct frame *c, int status)
{
    struct optimizer *o = c->optimizer;
    if (!o || o->shared)
        return;
    const char *name = functions[c->which].name;
    int is_iterate = strcmp(name, "opt_iterate") == 0, is_free = strcmp(name, "opt_free") == 0;
    int gives_up = o->iterating && ((is_iterate && status < 0) || (is_free && status == OPT_OK));
    int is_half = is_half_made(status);
    int writes = status >= 0 || gives_up || is_half ? functions[c->which].flags & (DATA | GRAD) : 0;
    if (is_free && !gives_up)
        writes = 0;
    if (strcmp(name, "opt_step") == 0 && writes)
        writes = (o->found_inf && *o->found_inf != 0 ? 0 : DATA) | (o->scale ? GRAD : 0);
    if (is_iterate && status == OPT_EVALUATE && !o->iterating)
        memcpy(o->start, o->arrays.shadow, o->arrays.size);
    check_arena(c, &o->arrays, writes, o->stepping ? DATA : 0, c->callbacks);
    check_arena(c, &o->indices, 0, 0, 0);
    check_arena(c, &o->numbers, 0, 0, 0);
    if (gives_up && !is_half)
        check_undone(c);
    if (is_iterate)
        o->iterating = status == OPT_EVALUATE;
    if (is_free && status == OPT_OK)
        forget(c->fuzzer, o);
}

static void check_output(struct frame *c, int status)
{
    const unsigned char *bytes = c->output.bytes;
    size_t kept = c->output.size - (status >= 0 ? c->output_size : 0);
    if (kept && (bytes[0] != 0xA5 || memcmp(bytes, bytes + 1, kept - 1) != 0))
        failed(c->fuzzer, "memory that is no result's has changed");
    memset(c->output.bytes + kept, 0xA5, c->output.size - kept);
}

static void check_quietness(struct fuzzer *f)
{
    char text[400] = "";
    if (lseek(quiet, 0, SEEK_END) == 0)
        return;
    CHECK(pread(quiet, text, sizeof text - 1, 0) >= 0);
    failed(f, "something was printed: %s", text);
}

/* ---- a call ---- */

static int choose_function(struct fuzzer *f)
{
    int sum = 0;
    for (int i = 0; i < FUNCTIONS; i++)
        sum += functions[i].weight;
    int left = below(f, (size_t)sum), which = 0;
    while ((left -= functions[which].weight) >= 0)
        which++;
    return which;
}

/* A number that is no optimizer's, nor becomes one: also not one that another thread makes meanwhile. */
static int a_forged_handle(struct fuzzer *f)
{
    const int forged[] = {0, -1, INT_MIN, INT_MAX, 1, 0xFFFF, 0x7FFF0000, 0x1FFFE, -65536};
    int i = below(f, 40);
    if (i < 9)
        return forged[i];
    return i < 12 ? (int)next(f) | 0xF000 : f->stale[i % 32]; /* no index is so high */
}

static int choose_optimizer(struct fuzzer *f, struct optimizer **chosen)
{
    *chosen = NULL;
    if (f->depth && !one_in(f, 3)) {
        *chosen = f->frames[f->depth - 1].optimizer;
        return f->frames[f->depth - 1].handle;
    }
    if (one_in(f, 25))
        return a_forged_handle(f);
    /* A callback asks none that another thread may call: two of them could wait for each other. */
    if (f->number > 0 && !f->depth && one_in(f, 2)) {
        int i = below(f, SHARED);
        *chosen = &shared[i];
        return shared_handles[i];
    }
    struct optimizer *o = &f->pool[below(f, LIVE)];
    if (!o->live)
        return a_forged_handle(f);
    *chosen = o;
    return o->handle;
}

/* Provoke an error that no other call has, so that a message which is not new is seen. */
static void leave_sentinel(struct frame *c)
{
    int number = -2 - (int)(c->fuzzer->calls % 1000000000);
    if (opt_step(number) != OPT_EHANDLE)
        failed(c->fuzzer, "opt_step(%d) is no OPT_EHANDLE", number);
    snprintf(c->sentinel, sizeof c->sentinel, "%s", opt_error());
}

/* Let the host write what it may between two calls. */
static void be_the_host(struct fuzzer *f, struct optimizer *o)
{
    if (one_in(f, 3))
        scribble(f, o, GRAD);
    if (one_in(f, 12) && !o->iterating)
        scribble(f, o, DATA);
    if (one_in(f, 4))
        scribble_indices(f, o);
    if (one_in(f, 4))
        scribble_numbers(f, o);
}

/* What an optimizer says of itself but how its next step is made, which may change; to be freed. */
static char *description(int opt)
{
    const char *text = opt_describe(opt), *step = text ? strstr(text, "\nstep: ") : NULL;
    return strdup(step ? strchr(step + 1, '\n') : "");
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* Make one call, of any function and with any arguments, and check all that it must leave. */
static int make_call(struct fuzzer *f)
{
    struct optimizer *o;
    int handle = choose_optimizer(f, &o), is_mine = o && !o->shared;
    struct frame *c = &f->frames[f->depth];
    c->optimizer = o, c->handle = handle;
    c->which = choose_function(f);
    c->inputs_used = c->callbacks = c->cut_short = 0;
    c->output_size = 0;
    int writes = functions[c->which].flags & DATA;
    if (is_mine && !f->depth)
        be_the_host(f, o);
    char *before = is_mine && !f->depth && one_in(f, 6) ? description(handle) : NULL;
    leave_sentinel(c);
    note(c, "%s, in the making", functions[c->which].name);
    f->depth++;
    f->since = time(NULL);
    if (o)
        o->stepping += writes != 0;
    double began = now();
    int status = functions[c->which].try(c);
    if (now() - began > f->slowest) {
        f->slowest = now() - began;
        snprintf(f->slowest_call, sizeof f->slowest_call, "call %ld: %.300s", f->calls, c->text);
    }
    if (o)
        o->stepping -= writes != 0;
    f->since = f->depth > 1 ? time(NULL) : 0;
    atomic_fetch_add(&made[c->which], 1);
    atomic_fetch_add(&refused[c->which], status < 0);
    check_status(c, status);
    check_message(c, status);
    check_arrays(c, status);
    check_output(c, status);
    check_quietness(f);
    if (before && status < 0) {
        char *after = description(handle);
        if (strcmp(before, after) != 0)
            failed(f, "a call that fails has changed the optimizer\nfrom: %s\nto:   %s", before, after);
        free(after);
    }
    free(before);
    char *recent = f->recent[f->calls++ % RECENT];
    memcpy(recent, c->text, sizeof f->recent[0] - 16);
    sprintf(recent + strnlen(recent, sizeof f->recent[0] - 16), " = %d", status);
    f->depth--;
    return status;
}

/* ---- who calls, and for how long ---- */

static _Atomic int is_over;
static double ends_at;

static long sum(_Atomic long *counts)
{
    long all = 0;
    for (int i = 0; i < FUNCTIONS; i++)
        all += counts[i];
    return all;
}

/* Tell of calls that do not return, and now and then how far this is. */
static void *watch(void *unused)
{
    for (double began = now(), told = began; !is_over; usleep(200000)) {
        for (int i = 0; i <= THREADS; i++) {
            time_t since = fuzzers[i].since;
            if (since && time(NULL) - since > PATIENCE) {
                tell(&fuzzers[i], "this call does not return");
                _exit(1);
            }
        }
        if (now() - told < 10)
            continue;
        told = now();
        fprintf(check_log, "%.0f s: %ld calls, %ld refused\n", told - began, sum(made), sum(refused));
        fflush(check_log);
    }
    return unused;
}

static void make_optimizer(struct fuzzer *f, struct optimizer *o)
{
    make_watched_arena(&o->arrays, ARENA);
    make_watched_arena(&o->indices, ARENA);
    make_watched_arena(&o->numbers, (size_t)sysconf(_SC_PAGESIZE));
    o->start = calloc(ARENA, 1);
    CHECK(o->start);
    memcpy(o->arrays.bytes, f->small, ARENA);
    memcpy(o->arrays.shadow, f->small, ARENA);
}

static void make_fuzzer(struct fuzzer *f, int number)
{
    f->number = number;
    f->random = seed + (uint64_t)number * 0x1234567;
    make_values(f);
    for (int i = 0; i < LIVE; i++)
        make_optimizer(f, &f->pool[i]);
    for (int i = 0; i < DEPTH; i++) {
        struct frame *c = &f->frames[i];
        c->fuzzer = f;
        for (size_t j = 0; j < sizeof c->inputs / sizeof *c->inputs; j++)
            make_arena(&c->inputs[j], GIANT);
        make_arena(&c->output, ARENA);
        memset(c->output.bytes, 0xA5, ARENA);
    }
}

static void *fuzz(void *fuzzer)
{
    self = fuzzer;
    use_signal_stack();
    while (now() < ends_at)
        make_call(self);
    for (int i = 0; i < LIVE; i++)
        if (self->pool[i].live && opt_free(self->pool[i].handle) < 0)
            failed(self, "opt_free(%d) fails", self->pool[i].handle);
    return NULL;
}

static void fuzz_in_threads(double seconds)
{
    pthread_t threads[THREADS];
    for (int i = 0; i < SHARED; i++) {
        make_optimizer(&fuzzers[0], &shared[i]);
        shared[i].shared = 1;
        shared_handles[i] = opt_create(optimizers[i]);
        CHECK(shared_handles[i] > 0);
    }
    ends_at = now() + seconds;
    for (int i = 0; i < THREADS; i++)
        CHECK(pthread_create(&threads[i], NULL, fuzz, &fuzzers[1 + i]) == 0);
    for (int i = 0; i < THREADS; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    for (int i = 0; i < SHARED; i++) {
        const struct arena *a = &shared[i].arrays;
        CHECK(opt_free(shared_handles[i]) == OPT_OK);
        CHECK(memcmp(a->bytes, a->shadow, ARENA / 4) == 0);
        CHECK(memcmp(a->bytes + 3 * ARENA / 4, a->shadow + 3 * ARENA / 4, ARENA / 4) == 0);
    }
}

static void usage(FILE *file)
{
    fprintf(file,
            "fuzz [--seconds S] [--seed N]\n"
            "Throw random calls with hostile arguments at every function of optplug.h.\n"
            "  --seconds S  for about so long (10); two thirds by one thread, one by three\n"
            "  --seed N     as a run before did, whose seed it printed; by one thread alone it repeats\n");
}

/* Go to a folder of our own, for files; `leave` removes it. */
static void enter(char *folder) { CHECK(mkdtemp(folder) && chdir(folder) == 0); }

static void leave(const char *folder)
{
    DIR *all = opendir(".");
    CHECK(all);
    for (struct dirent *entry; (entry = readdir(all));)
        unlink(entry->d_name); /* "." and ".." stay */
    CHECK(closedir(all) == 0 && chdir("/") == 0 && rmdir(folder) == 0);
}

int main(int argc, char **argv)
{
    const struct option known[] = {{"seconds", required_argument, NULL, 't'},
                                   {"seed", required_argument, NULL, 's'},
                                   {"help", no_argument, NULL, 'h'},
                                   {0}};
    double seconds = 10;
    seed = (unsigned long long)time(NULL);
    for (int option; (option = getopt_long(argc, argv, "", known, NULL)) != -1;) {
        if (option == 't')
            seconds = atof(optarg);
        else if (option == 's')
            seed = strtoull(optarg, NULL, 10);
        else
            return usage(option == 'h' ? stdout : stderr), option != 'h';
    }
    printf("seed %llu\n", seed);
    fflush(stdout);
    int out = dup(STDOUT_FILENO);
    quiet = check_quiet();
    char folder[] = "/tmp/optplug-fuzz-XXXXXX";
    enter(folder);
    watch_for_crashes();
    CHECK(opt_init(NULL) == OPT_OK); /* so that another python= comes too late */
    for (int i = 0; i <= THREADS; i++)
        make_fuzzer(&fuzzers[i], i);
    pthread_t watcher;
    CHECK(pthread_create(&watcher, NULL, watch, NULL) == 0);
    ends_at = now() + seconds * 2 / 3;
    fuzz(&fuzzers[0]);
    fuzz_in_threads(seconds / 3);
    is_over = 1;
    CHECK(pthread_join(watcher, NULL) == 0);
    leave(folder);
    check_was_quiet(quiet);
    CHECK(dup2(out, STDOUT_FILENO) >= 0);
    printf("%-26s %9s %9s\n", "function", "calls", "refused");
    for (int i = 0; i < FUNCTIONS; i++)
        printf("%-26s %9ld %9ld\n", functions[i].name, (long)made[i], (long)refused[i]);
    printf("%-26s %9ld %9ld\n", "all", sum(made), sum(refused));
    for (int i = 0; i <= THREADS; i++)
        printf("slowest of thread %d: %.1f s, %s\n", i, fuzzers[i].slowest, fuzzers[i].slowest_call);
    printf("seed %llu\n", seed);
    return 0;
}
