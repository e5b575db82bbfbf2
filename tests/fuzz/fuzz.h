/* What the fuzzer's files know of each other. */
#ifndef FUZZ_H
#define FUZZ_H

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

#include "../check.h"

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
    char sentinel[1024];      /* opt_error() before it */
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

/* Every function: what it may write, whether it takes a handle, whether a callback is barred from calling it
 * on its own optimizer, and how often it is chosen. */
enum { HANDLE = 4, BARRED = 8, MOST_FUNCTIONS = 64 };
struct function {
    const char *name;
    int (*try)(struct frame *);
    int flags, weight;
};
extern const struct function functions[];
extern const int function_count;

extern struct fuzzer fuzzers[1 + THREADS];
extern struct optimizer shared[SHARED];
extern _Atomic int shared_handles[SHARED];
extern _Thread_local struct fuzzer *self;
extern unsigned long long seed;
extern int quiet;
extern const int cookie; /* the user of every callback */

/* words.c */
extern const char *const optimizers[];
extern const char *const schedulers[];
extern const char *const averages[];
extern const char *const methods[];
extern const char *const options[];
extern const char *const settings[];
extern const char *const checkpoint_options[];
extern const char *const names[];
extern const char *const hyperparameters[];
extern const char *const kinds[];
extern const char *const dtypes[];
extern const int dtype_sizes[];
extern const char *const paths[];
extern const char *const devices[];

/* report.c */
void tell(struct fuzzer *f, const char *why);
__attribute__((noreturn, format(printf, 2, 3))) void failed(struct fuzzer *f, const char *format, ...);
void use_signal_stack(void);
void watch_for_crashes(void);
uint64_t next(struct fuzzer *f);
int below(struct fuzzer *f, size_t n);
int one_in(struct fuzzer *f, size_t n);
const char *any(struct fuzzer *f, const char *const *table);
int64_t odd_integer(struct fuzzer *f);
double any_double(struct fuzzer *f);

/* memory.c */
void make_arena(struct arena *arena, size_t size);
void make_watched_arena(struct arena *arena, size_t size);
void make_values(struct fuzzer *f);
void scribble(struct fuzzer *f, struct optimizer *o, int kind);
void scribble_indices(struct fuzzer *f, struct optimizer *o);
float *scale_of(struct optimizer *o);
float *found_inf_of(struct optimizer *o);
void scribble_numbers(struct fuzzer *f, struct optimizer *o);
int64_t extent(const struct layout *l);
void set_row_major(struct layout *l);
int64_t elements(const struct layout *l);
void mark_all(struct fuzzer *f, struct optimizer *o);

/* arguments.c */
const void *lend(struct frame *c, const void *bytes, size_t size);
const char *a_string(struct frame *c, const char *const *table);
int find(const char *const *table, const char *text);
uint64_t hash(const char *text);
struct parameter *find_parameter(struct optimizer *o, const char *name);
void make_strides(struct fuzzer *f, struct layout *l);
void make_layout(struct fuzzer *f, struct layout *l);
size_t a_place(struct frame *c, int64_t bytes, int size);
int is_inside(size_t place, int64_t count, int size);
const char *quoted(const char *text);
const char *listed(const int64_t *values, int count);
__attribute__((format(printf, 2, 3))) void note(struct frame *c, const char *format, ...);

/* parameters.c */
void forget(struct fuzzer *f, struct optimizer *o);
int try_create(struct frame *c);
int try_free(struct frame *c);
void *at(struct frame *c, size_t place);
int try_bind(struct frame *c);
int try_bind_nd(struct frame *c);
int try_bind_sparse(struct frame *c);
int try_group(struct frame *c);
int try_distribute(struct frame *c);
int try_bind_block(struct frame *c);
int try_set(struct frame *c);
int try_set_value(struct frame *c);
int try_get(struct frame *c);
int try_step(struct frame *c);
int try_step_f64(struct frame *c);
int try_step_f32(struct frame *c);
int try_step_closure(struct frame *c);
int try_iterate(struct frame *c);
int try_check_gradient(struct frame *c);
int try_zero_grad(struct frame *c);
int try_clip_grad_norm(struct frame *c);
int try_clip_grad_value(struct frame *c);

/* state.c */
int try_schedule(struct frame *c);
int try_schedule_callback(struct frame *c);
int try_schedule_step(struct frame *c);
int try_schedule_step_metric(struct frame *c);
int try_stream(struct frame *c);
int try_grad_scale(struct frame *c);
int try_average(struct frame *c);
int try_average_get(struct frame *c);
int try_average_swap(struct frame *c);
int try_call(struct frame *c);
int try_checkpoint(struct frame *c);
int try_attribute(struct frame *c);
int try_attribute_get(struct frame *c);
int try_save(struct frame *c);
int try_load(struct frame *c);
int try_save_memory(struct frame *c);
int try_load_memory(struct frame *c);
int try_init(struct frame *c);
int try_describe(struct frame *c);
int try_list(struct frame *c);
int try_log(struct frame *c);
int try_version(struct frame *c);
int try_error(struct frame *c);
int try_error_status(struct frame *c);
int try_traceback(struct frame *c);
int try_warning(struct frame *c);

/* checks.c */
void check_text(struct frame *c, const char *text);
void check_message(struct frame *c, int status);
void check_status(struct frame *c, int status);
void check_arrays(struct frame *c, int status);
void check_output(struct frame *c, int status);
void check_quietness(struct fuzzer *f);

/* fuzz.c */
int callback(void *user, double *value);
opt_callback a_callback(struct frame *c);
double *a_result(struct frame *c);
int a_group(struct frame *c);
int is_scaled(const struct optimizer *o);
void leave(const char *folder);

#endif
