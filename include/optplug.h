/* optplug: PyTorch's optimizers for programs that are not PyTorch programs.
 *
 * Your program (C, C++, Fortran, MATLAB, ...) owns its parameters and their gradients as plain
 * arrays.  optplug wraps those arrays, without copying, as the .data and .grad of the parameters of
 * a torch.nn.Module, and steps a real torch.optim optimizer on them in an embedded Python.
 *
 *     double w[3] = {0, 0, 0}, dw[3];
 *     int opt = opt_create("Adam(lr=0.1)");
 *     if (opt < 0 || opt_bind(opt, "w", "float64", 3, w, dw) < 0)
 *         fprintf(stderr, "%s\n", opt_error());
 *     for (int i = 0; i < 100; i++) {
 *         gradient(w, dw);
 *         opt_step(opt);
 *     }
 *     opt_free(opt);
 *
 * Names.  Whatever PyTorch names is the string that PyTorch uses: optimizers and their arguments
 * ("AdamW(lr=3e-4, betas=(0.9, 0.99))"), dtypes ("float32", "float64", "bfloat16"), devices ("cpu",
 * "cuda:0", also for AMD's GPUs).
 * PyTorch's documentation is the manual for them.  A string is parsed, never evaluated.
 *
 * Memory.  The arrays stay yours.  optplug borrows them from opt_bind to opt_free, reads and writes
 * them only during a call on that optimizer, and never frees them.  The optimizer's own state
 * (moments, step counts) is optplug's.  Strings you pass are copied.  Strings you get belong to
 * optplug: do not free them.
 *
 * Errors.  A negative result is a failure: one of the OPT_E... values below.  opt_error() is then a
 * line that names the argument and its value.  A call that fails changes nothing.  Zero or a positive
 * result is success.  Nothing here exits, aborts, prints, or throws.
 *
 * Threads.  Any thread may call.  Calls on one optimizer are made one after the other; calls on
 * different optimizers may run side by side.  The first call that needs Python starts it (some
 * seconds, for PyTorch's import) and it stays until the process ends.  pthread_cancel ends a thread where a
 * call begins, or in a function of yours, not in the middle.  A child of fork() may go on with
 * the optimizers that no other thread was calling; the others are errors there. */
#ifndef OPTPLUG_H
#define OPTPLUG_H

#include <stdint.h>

#define OPTPLUG_VERSION "0.1.0"
#define OPTPLUG_VERSION_NUMBER 100 /* for #if: 10000 * major + 100 * minor + patch */

#ifdef __cplusplus
extern "C" {
#endif

#ifndef OPTPLUG_NO_SHORT_NAMES

/* What a call returns.  These numbers never change; new ones may be added. */
enum {
    OPT_OK = 0,
    OPT_DONE = 0,        /* opt_iterate: the step is made */
    OPT_EVALUATE = 1,    /* opt_iterate: compute the loss and the gradients, and call again */
    OPT_EINVAL = -1,     /* an argument is wrong */
    OPT_EHANDLE = -2,    /* no such optimizer: freed already, or never created */
    OPT_ESTATE = -3,     /* right arguments, wrong moment: a step with nothing bound, for example */
    OPT_ESTART = -4,     /* Python or PyTorch could not be found or started */
    OPT_ERUNTIME = -5,   /* PyTorch raised an error while it worked: opt_traceback() says where */
    OPT_ENOMEM = -6,     /* out of memory, or out of handles */
    OPT_ENONFINITE = -7, /* a gradient has an inf or a nan in it, and you asked to be told */
    OPT_EIO = -8         /* a file could not be read or written: permission, a full disk, ... */
};

/* ---- one optimizer, from creation to the end ---- */

/* Create an optimizer from a constructor call, written as PyTorch's documentation writes it, without
 * the parameters or with a word for them: "SGD(lr=0.1, momentum=0.9)", "optim.SGD(params, lr=0.1)".
 *
 * Any class of torch.optim will do; LBFGS steps by opt_step_closure or opt_iterate, SparseAdam after
 * opt_bind_sparse.  Returns a handle, which is positive.  Hyperparameters are checked here, by PyTorch.
 * Where the spec says nothing of fused, foreach, capturable or differentiable,
 * PyTorch's fused kernels are used if the class has them and the bound arrays allow it; and for eight
 * parameters and more its foreach, if that gives the same bits. */
int opt_create(const char *spec);

/* Lend the optimizer one parameter: n values, and the array its gradient arrives in.
 *
 * Both stay yours, are read and written in place, and must outlive the optimizer or the next bind of
 * the same name.  Bind every parameter before the first step; each array belongs to one parameter, and none
 * is data and gradient at once.  After the first step, binding a name again moves that parameter to other
 * arrays of the same shape and dtype, and keeps its state. */
int opt_bind(int opt, const char *name, const char *dtype, int64_t n, void *data, void *grad);

/* Make one step: update every bound array from the gradient in its gradient array.
 *
 * The first steps go through Python.  With fused or compiled kernels (see opt_init) those after them do
 * not, and take no lock but the optimizer's own: half a microsecond for 50 values. */
int opt_step(int opt);

/* End an optimizer and release its state.  The bound arrays are left as they are. */
int opt_free(int opt);

/* ---- gradients, between computing them and the step ---- */

/* Set every gradient to zero, in your arrays. */
int opt_zero_grad(int opt);

/* Scale all gradients together so that their norm is max_norm at the most, as
 * torch.nn.utils.clip_grad_norm_ does.
 *
 * norm_type is the p of the p-norm, 2 or INFINITY say.  *total_norm, if it is not NULL, gets the norm
 * there was before.  With error_if_nonfinite other than 0, a norm that is inf or nan is OPT_ENONFINITE
 * and nothing is scaled.
 *
 * Gradients of more than 1e7 values in the CPU's memory are normed in pieces: PyTorch adds up their squares
 * in float32, and is off by a third at 2^28 values. */
int opt_clip_grad_norm(int opt, double max_norm, double norm_type, int error_if_nonfinite,
                       double *total_norm);

/* Clamp each value of each gradient to -clip_value ... clip_value. */
int opt_clip_grad_value(int opt, double clip_value);

/* ---- hyperparameters and learning-rate schedules ---- */

/* Get one hyperparameter of a parameter group, 0 for the first, as a number: "lr", "betas[0]";
 * True is 1.  Group -1 is all of them, where they agree.
 *
 * "step" is the number of steps made, those before an opt_load included: from a file of plain PyTorch's, as
 * many as its state counts. */
int opt_get(int opt, int group, const char *name, double *value);

/* Set hyperparameters of a group, or with -1 of all: "lr=1e-4, betas=(0.9, 0.99)". */
int opt_set(int opt, int group, const char *options);

/* Attach a scheduler of torch.optim.lr_scheduler, once every parameter is bound:
 * "StepLR(step_size=30)", or nested, "SequentialLR([LinearLR(total_iters=5),
 * CosineAnnealingLR(T_max=100)], milestones=[5])".
 *
 * It sets the learning rate at once.  Attaching another one chains them.  NULL takes all of them off: the
 * learning rates stay as they are, and a scheduler attached later starts from them. */
int opt_schedule(int opt, const char *spec);

/* Step the schedulers, all but ReduceLROnPlateau, in the order in which they were attached: after
 * opt_step, once a step or once an epoch, as their numbers are meant. */
int opt_schedule_step(int opt);

/* Step ReduceLROnPlateau alone, which watches the value: a validation loss, for example.
 *
 * Where none is attached, step CosineAnnealingWarmRestarts, to which the value is the epoch, whole or not.
 * Beside a ReduceLROnPlateau, opt_schedule_step steps that by whole epochs. */
int opt_schedule_step_metric(int opt, double value);

/* ---- when something goes wrong ---- */

/* Return this thread's last error, one line; "" if there was none.
 *
 * It stays until this thread's next failing call. */
const char *opt_error(void);

/* Return the status of that error, 0 if there was none: what opt_describe, opt_list and opt_attribute_get,
 * which return NULL, have failed with. */
int opt_error_status(void);

/* Return what PyTorch and optplug have warned of in this thread's calls since it was last asked, a line each;
 * "" for nothing.  The text is this thread's, until its next opt_warning. */
const char *opt_warning(void);

/* Return the Python traceback of this thread's last error, many lines; "" if Python was not in it. */
const char *opt_traceback(void);

/* ---- arrays of any shape and layout ---- */

/* Lend the optimizer one parameter of ndim dimensions, contiguous or strided.
 *
 * shape has ndim values, and so have strides and grad_strides, which count elements, not bytes.
 * NULL strides mean row-major (C order).  A column-major (Fortran) array of shape {m, n} has strides
 * {1, m}, which LBFGS alone refuses: bind it flat.  Strides may not be negative, nor let two elements
 * share memory, nor rows interleave.  ndim 0 is a scalar.  NULL for both arrays: they come with each step, by
 * opt_step_f64.
 *
 * device is where both arrays are, "cpu" or "cuda:0"; "cuda" is this thread's current one.  What is not there
 * is an error.  For memory of a GPU, see opt_stream. */
int opt_bind_nd(int opt, const char *name, const char *dtype, const char *device, int ndim,
                const int64_t *shape, void *data, const int64_t *strides, void *grad,
                const int64_t *grad_strides);

/* Make a step with arrays that are lent for this call alone, where a host's memory moves or is short-lived.
 *
 * They hold every parameter that was bound with NULL arrays, one after the other in the order of binding,
 * and are copied: arrays that are bound are not.  Clipping, closures and opt_average_swap take only those. */
int opt_step_f64(int opt, double *data, const double *grad);
int opt_step_f32(int opt, float *data, const float *grad);

/* Lend the optimizer a table of parameters, rows * columns in C order, whose gradient is zero but for
 * some rows: an embedding.
 *
 * At each step *count, of at most capacity, says how many rows have a gradient; row indices[i] has
 * grad_rows[i * columns ...].  A row that comes twice gets the sum.  SparseAdam steps nothing else, SGD
 * and Adagrad step this too.  Clipping takes grad_rows as they are, a row that comes twice counts twice. */
int opt_bind_sparse(int opt, const char *name, const char *dtype, int64_t rows, int64_t columns, void *data,
                    int64_t capacity, const int64_t *count, const int64_t *indices, void *grad_rows);

/* Let the parameters bound from now on be a group of their own, with options of its own:
 * "lr=1e-4, weight_decay=0".  Before any bind it gives group 0 its options. */
int opt_group(int opt, const char *options);

/* ---- functions of yours that a step or a schedule calls ---- */

/* Do what is asked with *value, and return 0, or a negative number to fail; a positive one fails too.
 *
 * For a step it is a closure: compute the loss into *value, and the gradients into their arrays.  A closure
 * that returns 0 and has not set *value fails.  For a schedule value[0] is the epoch, to be replaced by the
 * factor, and value[1] the parameter group.  If it leaves value[0] alone, opt_warning says so, once.
 *
 * It runs on the calling thread, with your floating-point environment.  In it you may ask and clip the
 * same optimizer, but not step, bind or free it.  Two functions that ask each other's optimizers, each
 * on a thread of its own, wait for ever, and so does one that waits for another thread's call on the same
 * optimizer.  It should return: one that an exception, longjmp or the end of its thread leaves makes its
 * optimizer good for opt_free alone. */
typedef int (*opt_callback)(void *user, double *value);

/* Make one step with a closure, which LBFGS calls several times and the others once.
 *
 * *loss, if it is not NULL, gets the first loss.  A closure that fails ends the step: its number is
 * the result, and parameters and state are as before. */
int opt_step_closure(int opt, opt_callback closure, void *user, double *loss);

/* Make the same step by reverse communication, where a function cannot be passed.
 *
 *     while ((status = opt_iterate(opt, loss)) == OPT_EVALUATE)
 *         loss = loss_and_gradient(w, dw);
 *
 * The first call of a step ignores loss.  OPT_DONE says that the step is made.  In between, the
 * optimizer can only be asked, clipped, or freed, which undoes the step. */
int opt_iterate(int opt, double loss);

/* Attach a scheduler with a function of yours, for the lr_lambda of LambdaLR and MultiplicativeLR,
 * "LambdaLR()", or for the scale_fn of CyclicLR.  It and user must outlive the optimizer. */
int opt_schedule_callback(int opt, const char *spec, opt_callback function, void *user);

/* ---- GPUs ---- */

/* Let an optimizer's work on the GPU that `stream` belongs to, a cudaStream_t (hipStream_t), go onto that
 * stream from now on; parameters must be bound there.  NULL: onto PyTorch's current one again, on all GPUs.
 * That is the legacy default stream, unless a host in Python has chosen another one for its thread.
 *
 * The stream stays yours and must outlive the optimizer or the next opt_stream.  A call puts its work onto
 * the stream and returns, as a kernel launch does.  It waits for the GPU only where it gives back numbers or
 * memory of the CPU: total_norm, error_if_nonfinite, opt_average_get into the CPU's memory, opt_save,
 * opt_load and the first step after it.  A later opt_step may be captured into a CUDA graph, with the
 * hyperparameters as they are. */
int opt_stream(int opt, void *stream);

/* Let each step from now on divide the gradients by *scale, the factor of your loss, and be left out where
 * *found_inf is 1 and not 0: what torch.amp.GradScaler does for PyTorch's programs.
 *
 * Both are one float32 on the device where the parameters are, or NULL for none.  They stay yours and must
 * outlive the optimizer or the next opt_grad_scale; a step reads them when it runs.  It may leave the
 * gradients divided in your arrays.  Fused kernels read them on the GPU; the first step, and steps
 * of other kernels, wait for the GPU to see found_inf.  A step that is left out counts in opt_average.  A
 * closure scales its loss and gradients itself. */
int opt_grad_scale(int opt, const void *scale, const void *found_inf);

/* ---- averages of the weights ---- */

/* Average the parameters after each step from now on, as torch.optim.swa_utils does: "AveragedModel()"
 * with equal weights, "AveragedModel(multi_avg_fn=get_ema_multi_avg_fn(0.999))" exponentially. */
int opt_average(int opt, const char *spec);

/* Copy the average of one parameter into data, of the same dtype and shape as the parameter, in C order.
 * It may be memory of the parameter's GPU, or of the CPU. */
int opt_average_get(int opt, const char *name, void *data);

/* Exchange the values of all parameters with their averages, in your arrays; the next call takes them
 * back.  No step can be made in between. */
int opt_average_swap(int opt);

/* ---- checkpoints ---- */

/* Write all that an optimizer needs to go on into a file: its state, hyperparameters, schedulers, averages
 * and step counts, with the names, shapes and dtypes of its parameters.  Their values are yours to keep, or
 * are in it after opt_checkpoint(opt, "parameters=True").
 *
 * At any moment the file is the old one or the new one, whole: it is written beside, under a name of its
 * own, put on the disk and renamed.  If several save to one path, the last to finish stays.  A symbolic link
 * stays one: the file that it names is replaced.  The new file gets the old one's mode, group and ACL.  What
 * is no regular file, such as a device or a pipe, is refused.  PyTorch reads it: torch.load(path,
 * weights_only=True)["optimizer"] is what load_state_dict of the same torch.optim class takes. */
int opt_save(int opt, const char *path);

/* Go on from a file of opt_save's, in an optimizer of the same class to which the same parameters are bound,
 * in the same groups, by their names; in what order, and where their arrays are, does not matter.
 *
 * The steps that follow are those of the optimizer that was saved, bit for bit, unless compiled kernels
 * (see opt_init) make them.  Schedulers and averages come out of the file, or, where you have attached them,
 * must be the same; a schedule with a function of yours must be attached before.  A file that PyTorch has
 * saved, of a state_dict or a dict with one (as "optimizer", if there are more), will do as well; its
 * parameters are taken by their param_names or else in order, and schedulers and averages stay as they are
 * here.  No code is run, whatever is in the file.  If anything is wrong with it, nothing has changed. */
int opt_load(int opt, const char *path);

/* Choose what opt_save writes for this optimizer, and what opt_load takes, from now on:
 *   parameters=True    the values of the parameters as well: opt_load puts them into your arrays.  Without
 *                      it you restore them yourself, before or after opt_load, and the first step warns
 *                      (opt_warning) where they are not as they were at opt_save
 *   schedules=False    opt_load leaves schedulers, learning rates and what else schedulers set as they are
 *                      here, and takes all other hyperparameters from the file
 * What is not named stays as it was: at first "parameters=False, schedules=True". */
int opt_checkpoint(int opt, const char *options);

/* Attach a text of yours, in UTF-8, to the optimizer: opt_save writes it, and opt_load brings those of the
 * file in place of those here.  NULL for the text removes it.  All names and texts have 1 MiB at most. */
int opt_attribute(int opt, const char *name, const char *text);

/* Return a text of yours.
 *
 * NULL on failure, which is OPT_EINVAL where there is none of that name.  The text is this thread's, as
 * opt_describe's. */
const char *opt_attribute_get(int opt, const char *name);

/* Write what opt_save writes into your memory, of size bytes, and return how many were used.  With NULL for
 * the buffer, return how many are needed. */
int64_t opt_save_memory(int opt, void *buffer, int64_t size);

/* Go on from what opt_save_memory has written. */
int opt_load_memory(int opt, const void *buffer, int64_t size);

/* ---- the library itself ---- */

/* Start Python and PyTorch now rather than at the first opt_create, with options; NULL for none.
 *
 * Options are written "name=value, name=value":
 *   python='/opt/env'               the environment that has PyTorch, by its folder or its interpreter; must
 *                                   come before the start
 *   num_threads=1                   threads that PyTorch may use in a call (1 for one an MPI rank)
 *   error_if_nonfinite=True         refuse a step (OPT_ENONFINITE) where a gradient has an inf or a nan,
 *                                   which costs a pass over each gradient
 *   third_party=True                let a spec name a class outside torch.optim, with its module:
 *                                   "pytorch_optimizer:Lion(lr=1e-4)"; the module is imported
 *   master_weights=True             keep a float32 copy of each float16 and bfloat16 parameter, and step
 *                                   that: your arrays get it rounded, and what else is written into them is
 *                                   lost unless they are bound again
 *   compile=True                    compile the steps of ASGD, Adadelta, Adamax, NAdam, RAdam, RMSprop and
 *                                   Rprop, on dense float32 and float64 arrays, into one pass over memory,
 *                                   with PyTorch's compiler and a C++ compiler: the second opt_step takes
 *                                   half a minute then, for each dtype and set of hyperparameters but lr,
 *                                   and no longer the next time: ~/.cache/optplug keeps what is made.
 *                                   Numbers are PyTorch's to 1e-5 (float32) and 1e-12 (float64) of their
 *                                   size, or of 1, in 12 steps, which is checked.  opt_describe says what
 *                                   steps are made of, and opt_warning why the compiler has failed
 *   log='debug'                     what opt_log's function is told: 'info', 'debug', or False for nothing
 *   plans=False                     let every step go through Python; or 'stable', or 'direct': step without
 *                                   it through PyTorch's stable C ABI, or, a microsecond faster, by its
 *                                   kernels' own entries, which is the default where the host is no Python
 * All but python, num_threads and log hold for the optimizers that are created after that, and False undoes
 * them.
 * Without python=, the environment is the one that the environment variable OPTPLUG_PYTHON names, or else
 * the one recorded when cmake (not pip) built optplug, or else the one in which liboptplug lies.
 * OPTPLUG_LIBPYTHON names a libpython to load.  In a set-uid program neither variable counts. */
int opt_init(const char *options);

/* Let a function of yours be told what the library does, a line each, for a log of your own; NULL: none.
 *
 * level is 1 for info, which is told unless opt_init says otherwise, and 2 for debug; line, without an end of
 * line, is there during the call alone.  The function is called at the end of a call of the library's, on the
 * thread that has made it, with your floating-point environment and none of our locks; on several threads at
 * a time, if they call.  It may call nothing of optplug's, and must return.  Set it before opt_init to be
 * told of the start.  When opt_log returns, the function before is not called any more.
 *
 * The environment variable OPTPLUG_LOG, info or debug, writes the same to stderr, at once. */
typedef void (*opt_log_function)(void *user, int level, const char *line);
int opt_log(opt_log_function function, void *user);

/* Describe an optimizer in a few lines of "name: value"; with opt = 0 the library itself: which
 * Python, libpython, torch and devices are used, and the options in force.  Starts nothing.
 *
 * NULL on failure.  The text is this thread's, until its next opt_describe, opt_list or opt_attribute_get. */
const char *opt_describe(int opt);

/* List what PyTorch has here, a line each: "optimizers", "schedulers", "dtypes", "devices"; or, for the
 * name of an optimizer or a scheduler, its arguments with their defaults.
 *
 * Starts Python if need be.  NULL on failure.  The text is this thread's, as opt_describe's. */
const char *opt_list(const char *kind);

/* Return the version of the library that is loaded: OPTPLUG_VERSION, as it was when that was built. */
const char *opt_version(void);

#endif /* OPTPLUG_NO_SHORT_NAMES */

/* ---- the same by longer names ---- */

/* For a program that has an opt_init or an OPT_OK of its own.  After
 *
 *     #define OPTPLUG_NO_SHORT_NAMES
 *
 * optplug.h declares these alone.  They are the functions and statuses above, which optplug.hpp and the other
 * bindings use by these names. */
enum {
    OPTPLUG_OK = 0,
    OPTPLUG_DONE = 0,
    OPTPLUG_EVALUATE = 1,
    OPTPLUG_EINVAL = -1,
    OPTPLUG_EHANDLE = -2,
    OPTPLUG_ESTATE = -3,
    OPTPLUG_ESTART = -4,
    OPTPLUG_ERUNTIME = -5,
    OPTPLUG_ENOMEM = -6,
    OPTPLUG_ENONFINITE = -7,
    OPTPLUG_EIO = -8
};
typedef int (*optplug_callback)(void *user, double *value);
int optplug_create(const char *spec);
int optplug_bind(int opt, const char *name, const char *dtype, int64_t n, void *data, void *grad);
int optplug_step(int opt);
int optplug_free(int opt);
int optplug_zero_grad(int opt);
int optplug_clip_grad_norm(int opt, double max_norm, double norm_type, int error_if_nonfinite,
                           double *total_norm);
int optplug_clip_grad_value(int opt, double clip_value);
int optplug_get(int opt, int group, const char *name, double *value);
int optplug_set(int opt, int group, const char *options);
int optplug_schedule(int opt, const char *spec);
int optplug_schedule_step(int opt);
int optplug_schedule_step_metric(int opt, double value);
const char *optplug_error(void);
int optplug_error_status(void);
const char *optplug_warning(void);
const char *optplug_traceback(void);
int optplug_bind_nd(int opt, const char *name, const char *dtype, const char *device, int ndim,
                    const int64_t *shape, void *data, const int64_t *strides, void *grad,
                    const int64_t *grad_strides);
int optplug_step_f64(int opt, double *data, const double *grad);
int optplug_step_f32(int opt, float *data, const float *grad);
int optplug_bind_sparse(int opt, const char *name, const char *dtype, int64_t rows, int64_t columns,
                        void *data, int64_t capacity, const int64_t *count, const int64_t *indices,
                        void *grad_rows);
int optplug_group(int opt, const char *options);
int optplug_step_closure(int opt, optplug_callback closure, void *user, double *loss);
int optplug_iterate(int opt, double loss);
int optplug_schedule_callback(int opt, const char *spec, optplug_callback function, void *user);
int optplug_stream(int opt, void *stream);
int optplug_grad_scale(int opt, const void *scale, const void *found_inf);
int optplug_average(int opt, const char *spec);
int optplug_average_get(int opt, const char *name, void *data);
int optplug_average_swap(int opt);
int optplug_checkpoint(int opt, const char *options);
int optplug_attribute(int opt, const char *name, const char *text);
const char *optplug_attribute_get(int opt, const char *name);
int optplug_save(int opt, const char *path);
int optplug_load(int opt, const char *path);
int64_t optplug_save_memory(int opt, void *buffer, int64_t size);
int optplug_load_memory(int opt, const void *buffer, int64_t size);
int optplug_init(const char *options);
typedef void (*optplug_log_function)(void *user, int level, const char *line);
int optplug_log(optplug_log_function function, void *user);
const char *optplug_describe(int opt);
const char *optplug_list(const char *kind);
const char *optplug_version(void);

#ifdef __cplusplus
}
#endif

#endif
