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

/* Values of one dtype, without gaps. */
typedef struct optplug_tensor {
    void *data;
    int64_t n;
    const char *dtype; /* NULL: no tensor, where one may be left out */
    int gpu;           /* which one's memory; -1: the CPU's */
} optplug_tensor;

/* One operator of torch's, for a step without Python: of lists of tensors, doubles, bools, and tensors by
 * themselves.  Or a kernel, a library made by AOTInductor: of one tensor of each list, for each of them in
 * turn, and of one double as a tensor.
 *
 * What it points to is read at once; the memory of the tensors stays. */
typedef struct optplug_operator {
    const char *name; /* with its namespace; a kernel's file */
    const char *overload;
    int is_kernel;
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

/* A step without Python, as Python states it.  What it points to stays until this thread asks again. */
typedef struct optplug_plan {
    int64_t serial;                    /* of this statement, which no other has */
    int count;                         /* of operators; 0: Python makes the steps */
    const optplug_operator *operators; /* NULL where the one asked with holds, with these scalars */
    const double *scalars; /* of all operators, one after the other: their doubles and then their bools */
    int stable; /* whether it runs through torch's stable ABI alone; -1: where the host is a Python */
} optplug_plan;

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
    int (*step)(int opt);
    int (*plan)(int opt, int64_t serial, optplug_plan *stated);
    int (*plan_refused)(int opt);
    int (*step_closure)(int opt, optplug_callback closure, void *user, double *loss);
    int (*iterate)(int opt, double loss, int *wanted);
    int (*stream)(int opt, void *stream);
    int (*grad_scale)(int opt, const void *scale, const void *found_inf);
    int (*zero_grad)(int opt);
    int (*clip_grad_norm)(int opt, double max_norm, double norm_type, int error_if_nonfinite,
                          double *total_norm);
    int (*clip_grad_value)(int opt, double clip_value);
    int (*get)(int opt, int group, const char *name, double *value);
    int (*set)(int opt, int group, const char *options);
    int (*schedule)(int opt, const char *spec, optplug_callback function, void *user);
    int (*schedule_step)(int opt, const double *metric);
    int (*average)(int opt, const char *spec);
    int (*average_get)(int opt, const char *name, void *data);
    int (*average_swap)(int opt);
    int (*checkpoint)(int opt, const char *options);
    int (*attribute)(int opt, const char *name, const char *text);
    int (*attribute_get)(int opt, const char *name);
    int (*save)(int opt, const char *path);
    int (*save_memory)(int opt, void *buffer, int64_t size, int64_t *written);
    int (*load)(int opt, const char *path);
    int (*load_memory)(int opt, const void *buffer, int64_t size);
    int (*free)(int opt);
    int (*describe)(int opt);
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
    /* Set the number of torch's threads, for all; set it for this thread if positive, and return it. */
    void (*threads)(int count);
    int (*thread_count)(int count);
    /* Note that Python ends; and a KeyboardInterrupt of a call, which the host is to get after it. */
    void (*end)(void);
    void (*interrupt)(void);
    /* Find torch's C functions in its library, and those for GPUs in another one; 0 where there are no plans.
     */
    int (*open_torch)(const char *library, const char *gpu_library);
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
