/* Random calls with hostile arguments, at every function of optplug.h: see usage() below.
 *
 * Two thirds of the time one thread calls, and a seed determines all that it does; then three threads share
 * some optimizers.  All that an optimizer is lent lies between two pages that nobody may touch, so that a
 * read or write outside is a crash there and then; bytes between arrays are compared after each call.
 *
 * What C cannot know of a pointer is not asked of it: an optimizer that has accepted arrays which leave their
 * memory is freed and nothing else, and closures keep to what optplug.h allows between threads. */
#include "fuzz.h"

struct fuzzer fuzzers[1 + THREADS];
struct optimizer shared[SHARED];
_Atomic int shared_handles[SHARED];
_Thread_local struct fuzzer *self;
unsigned long long seed;
int quiet;
const int cookie = 42;
static _Atomic long made[MOST_FUNCTIONS], refused[MOST_FUNCTIONS];

/* ---- a call ---- */

static int choose_function(struct fuzzer *f)
{
    int sum = 0;
    for (int i = 0; i < function_count; i++)
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

/* What an optimizer says of itself but how its next calls are made, which may change; to be freed. */
static char *description(int opt)
{
    const char *text = opt_describe(opt), *groups = text ? strstr(text, "\ngroup 0: ") : NULL;
    return strdup(groups ? groups : "");
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
    if (c->optimizer) /* to which a load may have gone back */
        c->optimizer->stepping -= writes != 0;
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

/* ---- functions of ours that are called ---- */

/* Write gradients, call the API, return something odd: whatever a host may do. */
int callback(void *user, double *value)
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

opt_callback a_callback(struct frame *c) { return one_in(c->fuzzer, 50) ? NULL : callback; }

/* Return where a call may write a result, at the end of memory; NULL now and then. */
double *a_result(struct frame *c)
{
    if (one_in(c->fuzzer, 12))
        return NULL;
    c->output_size = sizeof(double);
    return (double *)(void *)(c->output.bytes + c->output.size - sizeof(double));
}

int a_group(struct frame *c)
{
    return one_in(c->fuzzer, 6) ? (int)odd_integer(c->fuzzer) : below(c->fuzzer, 3) - 1;
}

int is_scaled(const struct optimizer *o) { return o && (o->scale || o->found_inf); }

/* ---- who calls, and for how long ---- */

static _Atomic int is_over;
static double ends_at;

static long sum(_Atomic long *counts)
{
    long all = 0;
    for (int i = 0; i < function_count; i++)
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

void leave(const char *folder)
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
    for (int i = 0; i < function_count; i++)
        printf("%-26s %9ld %9ld\n", functions[i].name, (long)made[i], (long)refused[i]);
    printf("%-26s %9ld %9ld\n", "all", sum(made), sum(refused));
    for (int i = 0; i <= THREADS; i++)
        printf("slowest of thread %d: %.1f s, %s\n", i, fuzzers[i].slowest, fuzzers[i].slowest_call);
    printf("seed %llu\n", seed);
    return 0;
}
