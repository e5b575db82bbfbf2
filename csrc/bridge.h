/* The private contract between liboptplug and its Python.
 *
 * The C compiler reads this file, and so does cffi (python/optplug/_build.py, which drops the lines
 * that begin with '#').  Each member of optplug_python becomes a callback, py_<member>, that
 * python/optplug/_bridge.py defines.
 *
 * A callback returns 1 for success or a negative status, having called host->record.  Never 0: that is
 * what cffi returns by itself where a callback could not run. */
#ifndef OPTPLUG_BRIDGE_H
#define OPTPLUG_BRIDGE_H

#include <stdint.h>

/* A function of the host's, as in optplug.h. */
typedef int (*optplug_callback)(void *user, double *value);
typedef int (*optplug_collective)(void *user, const char *what, const char *dtype, const void *send,
                                  void *receive, int64_t count);

/* Values of one dtype.  They lie one after the other; but in a record's list there may be gaps, or another order
 * than in its first list: the sizes and strides of their dimensions are then given, the innermost first. */
typedef struct optplug_tensor {
    void *data;
    int64_t n;
    const char *dtype; /* NULL: no tensor, where one may be left out */
    int gpu;           /* which one's memory; -1: the CPU's */
    int dims;          /* 0: one after the other */
    const int64_t *sizes, *strides;
} optplug_tensor;

/* How a number is written: in so many bytes, less than 0 where another format has as many. */
typedef enum {
    FORMAT_FLOAT16 = 2,
    FORMAT_FLOAT32 = 4,
    FORMAT_FLOAT64 = 8,
    FORMAT_BFLOAT16 = -2,
    FORMAT_INT64 = -8
} optplug_format;

/* How many values make it worth to work in several threads: as torch has it, at::internal::GRAIN_SIZE. */
enum { WORTH_THREADS = 32768 };

/* What is done to each value of an array: `to` becomes what stands here, where v and u are scalars in the
 * array's dtype.  Several are one operation of torch's, with another rounding each: which of them is torch's
 * is tried out.  What is done to float16 and bfloat16 is done in float32, and rounded. */
typedef enum {
    ELEMENTWISE_COPY,        /* a */
    ELEMENTWISE_NEGATE,      /* -a */
    ELEMENTWISE_ABS,         /* |a| */
    ELEMENTWISE_SIGN,        /* -1, 0 or 1; 0 of a nan */
    ELEMENTWISE_SQUARE,      /* a * a */
    ELEMENTWISE_SQRT,        /* the processor's, rounded correctly */
    ELEMENTWISE_SQRT_MKL,    /* Intel's, as torch has it in its library */
    ELEMENTWISE_SQRT_NEWTON, /* the same, without its call: none in float64, nor where other bits are seen */
    ELEMENTWISE_RECIPROCAL,  /* 1 / a */
    ELEMENTWISE_ADD_SCALAR,  /* a + v */
    ELEMENTWISE_MUL_SCALAR,  /* a * v */
    ELEMENTWISE_DIV_SCALAR,  /* a / v */
    ELEMENTWISE_DIV_SCALAR_BY_MUL, /* a * (1 / v) */
    ELEMENTWISE_ADD,               /* a + v * b */
    ELEMENTWISE_ADD_FMA,           /* the same, rounded once */
    ELEMENTWISE_ADD_FLOAT16,       /* the same, the product rounded to float16, ... */
    ELEMENTWISE_ADD_BFLOAT16,      /* ... to bfloat16: none in float64 */
    ELEMENTWISE_MUL,               /* a * b */
    ELEMENTWISE_DIV,               /* a / b */
    ELEMENTWISE_ADDCMUL,           /* a + (v * b) * c */
    ELEMENTWISE_ADDCMUL_FMA,       /* the same, the sum rounded once */
    ELEMENTWISE_ADDCMUL_RIGHT,     /* a + v * (b * c) */
    ELEMENTWISE_ADDCMUL_RIGHT_FMA, /* the same, the sum rounded once */
    ELEMENTWISE_MUL_ADDCMUL_FMA,   /* a * u + (v * b) * c, the sum rounded once */
    ELEMENTWISE_MUL_ADD_FMA,       /* a * u + v * b, the sum rounded once */
    ELEMENTWISE_ADDCDIV,           /* a + (v * b) / c */
    ELEMENTWISE_ADDCDIV_ADDED,     /* a + (v * b) / (c + u) */
    ELEMENTWISE_ADDCDIV_RIGHT,     /* a + v * (b / c) */
    ELEMENTWISE_ADDCDIV_RIGHT_FMA, /* the same, the sum rounded once */
    ELEMENTWISE_LERP,              /* a + v * (b - a), or from b where |v| is 0.5 or more */
    ELEMENTWISE_LERP_FMA,          /* the same, the sum rounded once */
    ELEMENTWISE_LERP_BACK,         /* the same, from b as b - (b - a) * (1 - v), ... */
    ELEMENTWISE_LERP_BACK_FMA,     /* ... rounded once */
    ELEMENTWISE_MAXIMUM,           /* the larger of a and b; nan where one is */
    ELEMENTWISE_MINIMUM,           /* the smaller */
    ELEMENTWISE_MAXIMUM_FIRST,     /* the same; of two zeros a, and not b */
    ELEMENTWISE_MINIMUM_FIRST,
    ELEMENTWISE_CLAMP,       /* a, at least v and at most u */
    ELEMENTWISE_CLAMP_MIN,   /* a, at least v */
    ELEMENTWISE_CLAMP_MAX,   /* a, at most v */
    ELEMENTWISE_CLAMP_ZEROS, /* these, with -0 below 0 */
    ELEMENTWISE_CLAMP_MIN_ZEROS,
    ELEMENTWISE_CLAMP_MAX_ZEROS,
    ELEMENTWISE_GREATER,        /* 1 where a > v, else 0 */
    ELEMENTWISE_LESS,           /* 1 where a < v, else 0 */
    ELEMENTWISE_EQUAL,          /* 1 where a == v, else 0 */
    ELEMENTWISE_FILL,           /* v */
    ELEMENTWISE_FILL_WHERE,     /* v where b is not 0, else a */
    ELEMENTWISE_WIDEN_FLOAT16,  /* float16 as float32: these are none in float64 */
    ELEMENTWISE_NARROW_FLOAT16, /* float32 rounded to float16 */
    ELEMENTWISE_ROUND_FLOAT16,  /* float32 rounded to what float16 has */
    ELEMENTWISE_WIDEN_BFLOAT16, /* the same of bfloat16 */
    ELEMENTWISE_NARROW_BFLOAT16,
    ELEMENTWISE_ROUND_BFLOAT16,
    ELEMENTWISE_DIV_MUL_SCALAR,          /* (a / u) * v: these are operations of torch's in turn */
    ELEMENTWISE_ADD_RECIPROCAL,          /* 1 / (a + u) */
    ELEMENTWISE_ADD_RECIPROCAL_MUL,      /* (1 / (a + u)) * v */
    ELEMENTWISE_DIV_MUL,                 /* (a / c) * b */
    ELEMENTWISE_MUL_MUL_SCALAR,          /* (a * b) * v */
    ELEMENTWISE_ADD_PRODUCT_FMA,         /* a + v * ((b * c) * u), the sum rounded once */
    ELEMENTWISE_ABS_ADD_SCALAR,          /* |a| + v */
    ELEMENTWISE_MAXIMUM_ABS_ADDED,       /* the larger of a and |b| + u */
    ELEMENTWISE_MUL_MAXIMUM_ABS_ADDED,   /* the larger of a * v and |b| + u */
    ELEMENTWISE_MAXIMUM_FIRST_ABS_ADDED, /* these, with MAXIMUM_FIRST */
    ELEMENTWISE_MUL_MAXIMUM_FIRST_ABS_ADDED,
    ELEMENTWISE_COUNT
} optplug_elementwise;

/* How a scalar of a record is computed, in double, from those before it. */
typedef enum {
    SCALAR_CONSTANT, /* `constant` */
    SCALAR_OPTION,   /* the operator's double number a */
    SCALAR_ITEM,     /* the one value of the tensor in list a */
    SCALAR_ADD,
    SCALAR_SUBTRACT,
    SCALAR_MULTIPLY,
    SCALAR_DIVIDE,
    SCALAR_POWER,
    SCALAR_MODULO, /* as Python has it: of b's sign */
    SCALAR_NEGATE,
    SCALAR_SQRT,
    SCALAR_COS,
    SCALAR_FLOOR,
    SCALAR_LESS, /* 1 or 0 */
    SCALAR_LESS_OR_EQUAL,
    SCALAR_EQUAL,
    SCALAR_ROUND,      /* to the format b */
    SCALAR_ELEMENTWISE /* what `elementwise` does to tensors of one value, of the format b, that hold the scalars
                        * operands[0] to [2], with operands[3] and [4] as v and u */
} optplug_scalar_kind;

typedef struct optplug_scalar {
    int kind, a, b;
    int elementwise, operands[5]; /* -1: none */
    double constant;
} optplug_scalar;

/* What is done to arrays: those of the lists by their numbers, and temporary ones after them. */
typedef struct optplug_instruction {
    int elementwise, end; /* for whole vectors, and for the values after those: see `optplug_record` */
    int to, a, b, c;      /* -1: none */
    int v, u;             /* scalars; -1: none */
} optplug_instruction;

/* What a step of an optimizer comes down to, for one parameter: arithmetic on scalars, with which branches were
 * taken, then operations on arrays.  It holds where each guard is what it was; nothing is changed before. */
typedef struct optplug_record {
    int scalar_count, guard_count, store_count, instruction_count, temporary_count;
    const optplug_scalar *scalars;
    const int *guards; /* pairs: a scalar, and 1 or 0: whether it was other than 0 */
    const int *stores; /* pairs: a list, whose tensors of one value become the scalar */
    const optplug_instruction *instructions;
    int lanes; /* how many values torch's loops take at once: each thread's share ends with those that are fewer;
                * 0: both are alike */
} optplug_record;

/* One operator of torch's, for a step without Python: of lists of tensors, doubles, bools, and tensors by
 * themselves.  Or records, of one tensor of each list, for each of them in turn: the first that holds.
 *
 * What it points to is read at once; the memory of the tensors stays. */
typedef struct optplug_operator {
    const char *name; /* with its namespace */
    const char *overload;
    int record_count; /* 0: no records */
    const optplug_record *records;
    int lists, doubles, bools, singles; /* how many it takes, in this order */
    int optional;                       /* whether the singles may be left out */
    const int *lengths;                 /* of the lists */
    const optplug_tensor *tensors;      /* of all lists, one after the other, and the singles */
    int gpu;                            /* which one it runs on; -1: the CPU */
    int has_stream;                     /* whether it runs on a stream of the host's, ... */
    void *stream;                       /* ... and which */
    int counters;                       /* the list of step counts, which rise by one before, and fall by the
                                         * value of the last single after; -1: none */
    int alone;                          /* whether to keep to the caller's thread */
    int gradients;                      /* the list that is to be finite, ... */
    int bytes;                          /* ... the bytes of a value in it, 0 if it need not be finite, ... */
    uint64_t infinity;                  /* ... and the bits of an infinity */
} optplug_operator;

/* How the host's gradients are zeroed and clipped without Python: where they are, all of one dtype, and which
 * of the operations have torch's bits; -1: none is known. */
typedef struct optplug_gradients {
    int count; /* 0: Python does it */
    const optplug_tensor *tensors;
    int lanes; /* in how many lanes squares are added up; 0: Python clips by the norm */
    int fused; /* whether squares are rounded only in the sums of lanes */
    int chunk; /* of those that fill no lane: how many at a time are rounded before they are added; 0: none */
    int add_scalar, mul_scalar, reciprocal, clamp_max, clamp;
} optplug_gradients;

/* How all ranks' gradients become one. */
typedef enum { REDUCTION_NONE = 0, REDUCTION_SUM = 1, REDUCTION_MEAN = 2 } optplug_reduction;

/* A parameter that all ranks have whole, n values, and of which each steps as many as `length`, or fewer. */
typedef struct optplug_slice {
    int64_t n, length;
    void *data, *grad; /* the host's */
    int reduction;
    void *reduced; /* becomes this rank's part of all ranks' gradients */
} optplug_slice;

/* All those of one dtype, ordered as on all ranks, with room for what is sent and received. */
typedef struct optplug_exchange {
    int bytes, count;
    const optplug_slice *slices;
    void *rows, *got, *row, *gathered;
    int div_scalar; /* the operation that divides as torch does */
} optplug_exchange;

/* Whether this step's gradients have been reduced: not yet; they have; by this call, which has yet to succeed;
 * a rank has failed before; their hyperparameters differ; another rank has failed in a step that this one has
 * made; this one has failed in the midst of it. */
enum {
    RANKS_NEW = 0,
    RANKS_REDUCED = 1,
    RANKS_REDUCED_NOW = 2,
    RANKS_FAILED = -1,
    RANKS_DIFFER = -2,
    RANKS_TORN = -3,
    RANKS_BROKEN = -4
};

/* How many numbers a rank sends with its gradients: whether it has failed, and the bits of its digest, whose
 * sums over ranks tell all of them whether these are alike. */
enum { RANKS_FLAGS = 33 };

/* By how many values of each parameter's gradient other gradients are noticed. */
enum { RANKS_SEEN = 64 };

/* Ranks that step together, and what they send. */
typedef struct optplug_ranks {
    int rank, size; /* 0: there are none */
    optplug_collective collective;
    void *user;
    int32_t *state; /* RANKS_NEW for example; and whether Python makes all calls now */
    uint64_t *seen; /* a checksum of the gradients that a clip has reduced */
    int64_t *sent;  /* how many collectives, and bytes to each other rank */
    double *table;  /* room for six numbers of each rank, and once more */
    /* The digest of the hyperparameters: of all that stay, and of the plan's scalars that move. */
    const uint64_t *rest;
    int moving;
    const uint64_t *seeds;
    const int *places;
    int count;
    const optplug_exchange *exchanges;
} optplug_ranks;

/* A hyperparameter that C may change in a plan, to any finite value from low to high. */
typedef struct optplug_rate {
    int group;        /* as in opt_set_value */
    const char *name; /* the same */
    double low, high;
    int count;         /* of its places in the plan, ... */
    const int *places; /* ... as indices of the plan's scalars */
} optplug_rate;

/* Steps of the schedulers without Python: records whose lists are numbers, one in each, ... */
typedef struct optplug_schedulers {
    const optplug_operator *steps; /* NULL: Python makes them */
    int count;                     /* ... of which so many are hyperparameters in the plan: ... */
    const int *lists, *places;     /* ... that in this list is the plan's scalar of this index */
} optplug_schedulers;

/* A step without Python, as Python states it.  What it points to stays until this thread asks again. */
typedef struct optplug_plan {
    int64_t serial;                    /* of this statement, which no other has */
    int count;                         /* of operators; 0: Python makes the steps */
    const optplug_operator *operators; /* NULL where the one asked with holds, with these scalars */
    const double *scalars; /* of all operators, one after the other: their doubles and then their bools */
    optplug_gradients gradients;
    optplug_ranks ranks;
    optplug_schedulers schedulers;
    int rate_count;
    const optplug_rate *rates;
    int moves;  /* whether its steps move numbers that Python keeps */
    int stable; /* whether it runs through torch's stable ABI alone; -1: where the host is a Python */
} optplug_plan;

/* Arrays whose values are a row, one after the other, in float32 (4 bytes) or float64 (8). */
typedef struct optplug_parts {
    int bytes, count;
    void *const *arrays;
    const int64_t *lengths;
} optplug_parts;

/* Where tensors of torch's lay, and as what.  Python's objects are given by their addresses. */
typedef struct optplug_lying {
    void *exchange; /* torch's functions, a capsule */
    int count;
    void *tensors;    /* a list */
    int64_t *numbers; /* LYING_NUMBERS of each: which it is, its device, dtype, sizes and strides */
    void **places;
} optplug_lying;

enum { LYING_DIMENSIONS = 5, LYING_NUMBERS = 4 + 2 * LYING_DIMENSIONS };

/* An attribute of some of Python's objects: lists of them, and of what it is. */
typedef struct optplug_attributes {
    void *name, *objects, *values;
} optplug_attributes;

/* Gradients that are lent. */
typedef struct optplug_loans {
    void *use_count, *owners; /* functions of torch's: how many own a tensor, or a memory */
    void *lent, *memories;    /* lists: what is lent, and for `owners` what its memory is */
    int64_t *counts;          /* LOANS_COUNTS of each: references, and what those functions say */
    const optplug_lying *lying, *lying_lent; /* all parameters, and what is lent */
    optplug_attributes hosts, gradients; /* the parameters' gradients: the host's, and those that are lent */
    const optplug_parts *from, *to;      /* what is copied of the former to the latter */
} optplug_loans;

enum { LOANS_COUNTS = 3 };

/* What an object that Python holds is: nobody has said yet; what does not change itself; what has attributes in a
 * dict; a tensor; what has another content, which Python copies; what nobody can see through. */
enum { HELD_UNKNOWN, HELD_OTHER, HELD_OBJECT, HELD_TENSOR, HELD_THING, HELD_STRANGE };

/* The same of what has values: a dict, which C or Python goes through; a list; a tuple; a set or a deque; a
 * function's variable; what else Python reads as a list. */
enum { HELD_DICT = 8, HELD_DICT_READ, HELD_LIST, HELD_TUPLE, HELD_ITERABLE, HELD_CELL, HELD_READ };

enum { HELD_MOST_BYTES = 1 << 18 }; /* of tensors that C copies: of more, torch's threads copy faster */

typedef struct optplug_held {
    int kind;       /* one of these */
    int wants;      /* whether a tensor requires a gradient; -1: it was computed, and is left as it is */
    int64_t length; /* how many values it has: a tensor one, its gradient, unless it is a parameter */
    int64_t span;   /* how many bytes are copied; -1: Python copies them */
    void *place;
    int64_t numbers[LYING_NUMBERS];
} optplug_held;

/* All that some objects lead to.  Python's objects are given by their addresses. */
typedef struct optplug_holdings {
    void *roots;         /* a list: an optimizer, parameters, and others */
    int parameter_count; /* whose gradients are not the optimizer's */
    void *tell; /* a function: returns which of these an object is, and a list of what it leads to besides its
                  * values, or None; of one with attributes its class and its dict come first */
    void *read; /* another: returns the values in what it reads, in a dict with a key before each */
    void *ends; /* a list of types that lead nowhere */
    void *types;                           /* another, of those that C knows, ... */
    const char *kinds;                     /* ... and which of these they are */
    void *tensor, *parameter;              /* torch's types */
    void *nothing, *none, *yes, *exchange; /* an empty variable's value, None, True; see optplug_lying */
    void *dict_name, *data_name, *grad_name, *requires_grad_name, *is_leaf_name;
    /* Lists, which become what there is: the objects, what they lead to, of tensors their memory, and the keys and
     * values of all in turn.  In `raised` is an exception that the functions have raised. */
    void *objects, *leads, *keys, *values, *dropped, *raised;
    /* C's, NULL and 0 at first. */
    int64_t count, key_count, value_count, marked_count, capacity, value_capacity, row_size, seen_size;
    optplug_held *held;
    int64_t *marked;      /* objects that Python is to copy, by their places among all */
    char *row, *are_ends; /* the copies, one after the other; and of each value whether it leads nowhere */
    void *seen;
    const void *functions;
    int64_t seen_count, walk;
} optplug_holdings;

/* An inverse Hessian, known by pairs of rows of n values in float32 (4 bytes) or float64 (8), oldest first:
 * steps, and the differences of gradients along them. */
typedef struct optplug_inverse {
    int bytes, count;
    int64_t n;
    int add;         /* the operation that adds a multiple of a row as torch does */
    double diagonal; /* what it is before the pairs */
    void *const *steps, *const *differences;
    const double *factors; /* of each pair: 1 / (their scalar product) */
    double *products;      /* becomes the factor times that of each step with the row */
} optplug_inverse;

/* What Python does for C.  A call that may change what a plan has fixed returns 2 where a plan is stated. */
typedef struct optplug_python {
    int (*configure)(const char *options);
    int (*enter_thread)(void);
    int (*create)(int opt, const char *spec);
    int (*bind)(int opt, const char *name, const char *dtype, const char *device, int ndim,
                const int64_t *shape, void *data, const int64_t *strides, void *grad,
                const int64_t *grad_strides, int staged);
    int (*bind_sparse)(int opt, const char *name, const char *dtype, int64_t rows, int64_t columns,
                       void *data, int64_t capacity, const int64_t *count, const int64_t *indices,
                       void *grad_rows);
    int (*group)(int opt, const char *options);
    int (*distribute)(int opt, const char *placement, optplug_collective collective, void *user, int rank,
                      int size);
    int (*bind_block)(int opt, const char *name, int ndim, const int64_t *global_shape, const int64_t *offset,
                      const int64_t *shape);
    int (*step)(int opt);
    int (*plan)(int opt, int64_t serial, optplug_plan *stated);
    int (*plan_refused)(int opt, int has_failed);
    int (*step_closure)(int opt, optplug_callback closure, void *user, double *loss);
    int (*iterate)(int opt, double loss, int *wanted);
    int (*check_gradient)(int opt, optplug_callback closure, void *user, double *error);
    int (*check_gradient_iterate)(int opt, double loss, int *wanted, double *error);
    int (*stream)(int opt, void *stream);
    int (*grad_scale)(int opt, const void *scale, const void *found_inf);
    int (*zero_grad)(int opt);
    /* Of error_if_nonfinite, 2 says that ranks have told each other what they have, and must once more. */
    int (*clip_grad_norm)(int opt, double max_norm, double norm_type, int error_if_nonfinite,
                          double *total_norm);
    int (*clip_grad_value)(int opt, double clip_value);
    int (*get)(int opt, int group, const char *name, double *value);
    int (*set)(int opt, int group, const char *options);
    int (*set_value)(int opt, int group, const char *name, double value);
    int (*take_value)(int opt, int group, const char *name, double value);
    int (*take_numbers)(int opt); /* those that a plan or its schedulers have moved */
    int (*schedule)(int opt, const char *spec, optplug_callback function, void *user);
    int (*schedule_step)(int opt, const double *metric);
    int (*average)(int opt, const char *spec);
    int (*average_get)(int opt, const char *name, void *data);
    int (*average_swap)(int opt);
    int (*call)(int opt, const char *method);
    int (*checkpoint)(int opt, const char *options);
    int (*attribute)(int opt, const char *name, const char *text);
    int (*attribute_get)(int opt, const char *name);
    int (*save)(int opt, const char *path);
    int (*save_memory)(int opt, void *buffer, int64_t size, int64_t *written);
    int (*load)(int opt, const char *path);
    int (*load_memory)(int opt, const void *buffer, int64_t size);
    int (*free)(int opt);
    int (*describe)(int opt, const char *way);
    int (*describe_library)(const char *lines);
    int (*list)(const char *kind);
} optplug_python;

/* What C does for Python. */
typedef struct optplug_host {
    /* Keep this thread's error, warnings and text. */
    void (*record)(int status, const char *message, const char *traceback);
    void (*warn)(const char *line);
    void (*text)(const char *text);
    /* Call a function of the host's as if Python were not there. */
    int (*call)(optplug_callback function, void *user, double *value);
    int (*collective)(optplug_collective function, void *user, const char *what, const char *dtype,
                      const void *send, void *receive, int64_t count);
    /* Set the number of torch's threads, for all; set it for this thread if positive, and return it. */
    void (*threads)(int count);
    int (*thread_count)(int count);
    /* Note that Python ends; and a KeyboardInterrupt of a call, which the host is to get after it. */
    void (*end)(void);
    void (*interrupt)(void);
    /* Find torch's C functions in its library, and those for GPUs in another one; 0 where there are no plans.
     */
    int (*open_torch)(const char *library, const char *gpu_library);
    /* Do an operation to n values of a format, as records do it; 0 if this machine has none such.  Make the step
     * of a plan once; 0 if that fails. */
    int (*elementwise)(int operation, int format, int64_t n, void *to, const void *a, const void *b,
                       const void *c, double v, double u);
    int (*run_plan)(const optplug_plan *stated);
    /* Return the scalar product of two rows as torch's library computes it, nan where it has none; the largest
     * absolute value in a row, nan where one is. */
    double (*dot)(int bytes, int64_t n, const void *a, const void *b);
    double (*largest)(int bytes, int64_t n, const void *a);
    /* Copy arrays to a row, and back; add a multiple of a row to them, by the operation `add`.  Multiply a row by
     * an inverse Hessian.  0 if this machine has no such operation. */
    void (*take)(const optplug_parts *parts, void *row);
    void (*put)(const optplug_parts *parts, const void *row);
    int (*move)(const optplug_parts *parts, int add, const void *row, double factor);
    int (*multiply)(const optplug_inverse *by, void *row);
    /* Note all, with tensors' values where `takes`; return how many objects are left to copy, -1 if that fails. */
    int64_t (*note)(optplug_holdings *holdings, int takes);
    void (*forget)(optplug_holdings *holdings);
    /* Note where tensors lie, or compare that, and note where those lie that have come into the place of others of
     * their form.  Return how many there are before one that lies elsewhere, or of which DLPack cannot tell. */
    int (*look)(const optplug_lying *lying, int is_first);
    /* Copy the host's gradients to those that are lent, and let the parameters have these; 0 if somebody else has
     * one of these, the host's are others or one lies elsewhere.  Let the parameters have the host's gradients; 0
     * if one lies elsewhere. */
    int (*lend)(const optplug_loans *loans, int is_first);
    int (*take_back)(const optplug_loans *loans);
    /* Clip gradients by their norm, and return 1; 0 if they are not clipped. */
    int (*clip_grad_norm)(const optplug_gradients *gradients, double max_norm, double *total_norm);
    /* Return how many steps plans have made since this was last asked. */
    int64_t (*take_steps)(int opt);
    /* Return the highest level of lines that anybody wants; tell one; return the level of opt_log's function,
     * and set it unless negative. */
    int (*log_wanted)(void);
    void (*log)(int level, const char *line);
    int (*log_level)(int level);
} optplug_host;

/* Exchange the tables; NULL if `version`, the bridge's, is not this library's. */
const optplug_host *optplug_attach(const optplug_python *python, const char *version);

#endif
