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
 * Names.  Optimizers and their arguments ("AdamW(lr=3e-4, betas=(0.9, 0.99))"), dtypes ("float32",
 * "float64", "bfloat16") and devices ("cpu", "cuda:0", also for AMD GPUs) are strings, spelled as in
 * PyTorch.  PyTorch's documentation is the manual for them.  Strings are parsed, never evaluated.
 *
 * Memory.  The arrays stay yours.  optplug borrows them from opt_bind to opt_free, reads and writes
 * them only during a call on that optimizer, and never frees them.  The optimizer's own state
 * (moments, step counts) belongs to optplug.  Strings you pass are copied.  Strings you get belong to
 * optplug: do not free them.
 *
 * Errors.  A negative result is a failure: one of the OPT_E... values below.  opt_error() then
 * returns one line that names the argument and its value.  A call that fails changes nothing.  Zero or a
 * positive result is success.  Nothing here exits, aborts, prints, or throws.
 *
 * Threads.  Any thread may call.  Calls on one optimizer run one after the other; calls on different
 * optimizers may run in parallel.  The first call that needs Python starts it, which takes a few seconds
 * to import PyTorch; it stays until the process ends.  pthread_cancel takes effect at the start of a call
 * or in a callback, never inside a call.  A child of fork() may use every optimizer except those that
 * another thread was calling at the fork: calls on these fail there. */
#ifndef OPTPLUG_H
#define OPTPLUG_H

#include <stdint.h>

#define OPTPLUG_VERSION "0.1.0"
#define OPTPLUG_VERSION_NUMBER 100 /* for #if: 10000 * major + 100 * minor + patch */

#ifdef __cplusplus
extern "C" {
#endif

#ifndef OPTPLUG_NO_SHORT_NAMES

/* What a call returns.  These numbers never change, but new ones may be added. */
enum {
    OPT_OK = 0,
    OPT_DONE = 0,        /* opt_iterate: the step is complete */
    OPT_EVALUATE = 1,    /* opt_iterate: compute the loss and the gradients, and call again */
    OPT_EINVAL = -1,     /* an argument is wrong */
    OPT_EHANDLE = -2,    /* no such optimizer: freed already, or never created */
    OPT_ESTATE = -3,     /* valid arguments at the wrong time: a step with nothing bound, for example */
    OPT_ESTART = -4,     /* Python or PyTorch could not be found or started */
    OPT_ERUNTIME = -5,   /* PyTorch raised an error: opt_traceback() shows where */
    OPT_ENOMEM = -6,     /* out of memory, or out of handles */
    OPT_ENONFINITE = -7, /* a gradient contains inf or nan, and you asked for that to be an error */
    OPT_EIO = -8         /* a file could not be read or written: permission, a full disk, ... */
};

/* ---- one optimizer, from creation to the end ---- */

/* Create an optimizer from a constructor call, written as in PyTorch's documentation, without the
 * parameters or with a placeholder for them: "SGD(lr=0.1, momentum=0.9)", "optim.SGD(params, lr=0.1)".
 *
 * Supports every class of torch.optim; LBFGS needs opt_step_closure or opt_iterate, SparseAdam needs
 * opt_bind_sparse.  For other classes, allow them by third_party (see opt_init) and write the module first:
 * "pytorch_optimizer:Lion(lr=1e-4)".  Their arguments may also be dtypes, classes and optimizers:
 * "pytorch_optimizer:SAM(base_optimizer=SGD, lr=0.1)", "pytorch_optimizer:Lookahead(SGD(lr=0.1), k=5)".
 *
 * Returns a positive handle.  PyTorch checks the hyperparameters here.  Unless the spec sets fused, foreach,
 * capturable or differentiable, optplug uses PyTorch's fused kernels where the class and the arrays allow it. */
int opt_create(const char *spec);

/* Lend the optimizer one parameter: n values, and the array that receives its gradient.
 *
 * Both stay yours, are read and written in place, and must outlive the optimizer or the next bind of
 * the same name.  Bind every parameter before the first step.  Arrays must not overlap.  After the first
 * step, binding a name again moves that parameter to other arrays of the same shape and dtype; its state
 * is kept. */
int opt_bind(int opt, const char *name, const char *dtype, int64_t n, void *data, void *grad);

/* Make one step: update every bound array from its gradient array.
 *
 * The first steps run in Python.  Later ones bypass it where they are known to match PyTorch bit for bit:
 * they hold only this optimizer's lock, and take half a microsecond for 50 values.  opt_describe says how
 * steps run. */
int opt_step(int opt);

/* Free an optimizer and its state.  The bound arrays are left unchanged. */
int opt_free(int opt);

/* ---- gradients, between computing them and the step ---- */

/* Set every gradient to zero, in your arrays. */
int opt_zero_grad(int opt);

/* Scale all gradients together so that their norm is at most max_norm, as
 * torch.nn.utils.clip_grad_norm_ does.
 *
 * norm_type is the p of the p-norm, such as 2 or INFINITY.  *total_norm, if not NULL, receives the norm
 * before scaling.  If error_if_nonfinite is not 0, an inf or nan norm is OPT_ENONFINITE and nothing is
 * scaled.
 *
 * For CPU gradients of more than 1e7 values the norm is computed in pieces, and is more accurate than
 * PyTorch's, which sums the squares in float32 and is off by a third at 2^28 values. */
int opt_clip_grad_norm(int opt, double max_norm, double norm_type, int error_if_nonfinite,
                       double *total_norm);

/* Clamp each value of each gradient to -clip_value ... clip_value. */
int opt_clip_grad_value(int opt, double clip_value);

/* ---- hyperparameters and learning-rate schedules ---- */

/* Get one hyperparameter of a parameter group as a number: "lr", "betas[0]"; True is 1.
 *
 * Group 0 is the first; -1 means all groups, which must agree.  "step" is the number of steps so far,
 * including those before an opt_load; for a file from plain PyTorch, those are the count in its state.
 * LBFGS also has "n_iter" and "func_evals", its iterations and evaluations so far; opt_describe says which
 * limit ended its last step. */
int opt_get(int opt, int group, const char *name, double *value);

/* Set hyperparameters of one group, or of all (-1): "lr=1e-4, betas=(0.9, 0.99)". */
int opt_set(int opt, int group, const char *options);

/* Set one hyperparameter, named as in opt_get, of one group, or of all (-1): for values that change at every
 * step.
 *
 * PyTorch checks the value as in opt_set; use opt_set for options that are True or False.  Where steps bypass
 * Python and no scheduler is attached, so do repeated calls for the same name and group, which then take a
 * tenth of a microsecond. */
int opt_set_value(int opt, int group, const char *name, double value);

/* Attach a scheduler of torch.optim.lr_scheduler, once every parameter is bound:
 * "StepLR(step_size=30)", or nested, "SequentialLR([LinearLR(total_iters=5),
 * CosineAnnealingLR(T_max=100)], milestones=[5])".
 *
 * It sets the learning rate immediately.  Several schedulers are chained.  NULL removes them all: learning
 * rates keep their current values, and a scheduler attached later starts from those. */
int opt_schedule(int opt, const char *spec);

/* Step all schedulers except ReduceLROnPlateau, in the order in which they were attached.
 *
 * Call it after opt_step, once per step or per epoch, whichever unit their arguments use. */
int opt_schedule_step(int opt);

/* Step only ReduceLROnPlateau, which watches the value: a validation loss, for example.
 *
 * If none is attached, step CosineAnnealingWarmRestarts, for which the value is the epoch and may be a
 * fraction.  If both are attached, opt_schedule_step steps CosineAnnealingWarmRestarts, by whole epochs. */
int opt_schedule_step_metric(int opt, double value);

/* ---- when something goes wrong ---- */

/* Return this thread's last error, one line; "" if there was none.
 *
 * Valid until this thread's next failing call. */
const char *opt_error(void);

/* Return that error's status, 0 if there was none.  You need it after functions that return NULL on failure:
 * opt_describe, opt_list and opt_attribute_get. */
int opt_error_status(void);

/* Return the warnings from this thread's calls since its last opt_warning, one per line; "" if none.
 *
 * Valid until this thread's next opt_warning. */
const char *opt_warning(void);

/* Return the Python traceback of this thread's last error; "" if the error did not come from Python. */
const char *opt_traceback(void);

/* ---- arrays of any shape and layout ---- */

/* Lend the optimizer one parameter of ndim dimensions, contiguous or strided.
 *
 * shape, strides and grad_strides have ndim values each; strides count elements, not bytes.  NULL strides
 * mean row-major (C order).  A column-major (Fortran) array of shape {m, n} has strides {1, m}, which only
 * LBFGS rejects: bind it flat.  Strides must not be negative; elements must not share memory, and rows
 * must not interleave.  ndim 0 is a scalar.  If both arrays are NULL, you pass them with each step: see
 * opt_step_f64.
 *
 * device is where both arrays are, "cpu" or "cuda:0"; "cuda" is this thread's current GPU.  An unavailable
 * device is an error.  For GPU memory, see opt_stream. */
int opt_bind_nd(int opt, const char *name, const char *dtype, const char *device, int ndim,
                const int64_t *shape, void *data, const int64_t *strides, void *grad,
                const int64_t *grad_strides);

/* Make a step with arrays that are borrowed for this call only, for hosts whose memory moves or is
 * short-lived.
 *
 * Pack all parameters that were bound with NULL arrays back to back, in the order of binding; they are
 * copied in and out.  Clipping, closures and opt_average_swap require bound arrays. */
int opt_step_f64(int opt, double *data, const double *grad);
int opt_step_f32(int opt, float *data, const float *grad);

/* Lend the optimizer a table of parameters, rows * columns in C order, whose gradient is zero except in a
 * few rows: an embedding.
 *
 * At each step, *count rows have a gradient, at most capacity of them: row indices[i] has the gradient
 * grad_rows[i * columns ...].  Duplicate rows are summed.  SparseAdam accepts only such tables; SGD and
 * Adagrad accept them too.  Clipping uses grad_rows as given, so duplicate rows count twice. */
int opt_bind_sparse(int opt, const char *name, const char *dtype, int64_t rows, int64_t columns, void *data,
                    int64_t capacity, const int64_t *count, const int64_t *indices, void *grad_rows);

/* Start a parameter group: parameters bound from now on belong to it and use these options,
 * "lr=1e-4, weight_decay=0".  Before any bind it sets the options of group 0.
 *
 * For a class outside torch.optim, a group may have any option, "use_muon=True", even if the constructor has
 * no such argument: it is checked when a parameter is bound, and opt_warning reports one that the class's
 * module never mentions. */
int opt_group(int opt, const char *options);

/* ---- many ranks ---- */

/* A collective over your ranks, which you provide: carry out the operation that what names on count values of
 * dtype, and return 0, or a negative number on failure.
 *
 * "all_gather": send has count values of this rank; receive gets those of all ranks, in the order of ranks;
 * dtype is "uint8".  "reduce_scatter": send has count values for each rank, in the order of ranks; receive
 * gets, for the count values that are this rank's, the sum over all ranks; dtype is "float32" or "float64".
 * The two arrays do not overlap.
 *
 * All ranks call it in the same order, each on the thread that called optplug, with your floating-point
 * environment.  It must return, and must not call optplug.  optplug_mpi.h has one for MPI. */
typedef int (*opt_collective)(void *user, const char *what, const char *dtype, const void *send,
                              void *receive, int64_t count);

/* Let the size ranks of a parallel program step this optimizer together; this one is number rank.
 *
 * Call it before opt_bind.  placement, in the words of torch.distributed.tensor, says how the parameters
 * bound from now on are spread over the ranks:
 *   "Replicate()"                   every rank has the whole parameter, and the gradient of its own data;
 *                                   gradients and losses are averaged
 *   "Replicate(), Partial('sum')"   the same, but gradients and losses are added up
 *   "Replicate(), Replicate()"      the same, but you have reduced gradients and losses already
 *   "Shard(0)"                      every rank has a part, along dimension 0 in the order of ranks, of any
 *                                   size, even 0; norms are those of the whole, and losses and metrics are
 *                                   added up
 * For parameters of several kinds, call it again with another placement.
 *
 * Of a replicated parameter each rank steps a slice, and keeps the state of that slice only; then all ranks
 * receive all values.  Muon and Adafactor need whole parameters: each parameter is stepped by one of the ranks,
 * and none can be in "Shard(0)".  Gradients are reduced once, by the first clip or step that succeeds.  If you
 * leave out the step after a clip, call opt_zero_grad before you compute the next gradients: without it, the
 * next call fails if they have changed, which ranks tell by up to 64 values of each array.  Your gradient arrays
 * keep this rank's values.
 *
 * From then on all ranks call opt_step, opt_step_closure, opt_iterate, opt_check_gradient,
 * opt_clip_grad_norm, opt_clip_grad_value, opt_average_get, opt_average_swap, opt_schedule_step_metric,
 * opt_save and opt_load, in the same order.  The first of these compares spec, groups, schedulers, PyTorch's
 * version, and parameters by name.  Hyperparameters, which opt_set or a schedule may have changed since, are
 * compared whenever gradients are reduced, by opt_clip_grad_norm, at each evaluation of a closure, and by
 * opt_save.  A difference is an error on all ranks, and so is a failure of one rank, in every call that
 * communicates; nothing has changed on any rank then, unless the error says that others had made the step when
 * one ran out of memory in it.  Element-wise steps of "Shard(0)" parameters communicate only after
 * opt_grad_scale, which all ranks must call: if found_inf is set on one rank, all ranks skip the step.
 *
 * With equal gradients, element-wise steps give the bits of one process, with one exception: PyTorch's fused
 * kernels round the last values of an array differently, so let the parts of "Shard(0)" have a multiple of 64
 * values, or write fused=False.
 *
 * With NULL for collective, the ranks are torch.distributed's, over gloo, as torchrun starts them; pass 0 for
 * rank and size.  With one rank nothing is communicated.  Supports the dense classes of torch.optim, with
 * arrays on the CPU. */
int opt_distribute(int opt, const char *placement, opt_collective collective, void *user, int rank, int size);

/* Say which block of a grid this rank's part of a "Shard(0)" parameter is, if the parts do not follow each
 * other along dimension 0 in the order of ranks.
 *
 * global_shape is the whole grid's shape, offset is where this rank's block begins in it, and shape is the
 * block's, NULL for the shape that was bound.  Each has ndim values.  The blocks of all ranks must fill the
 * grid.  A parameter that was bound as n values may have any shape of n values, in C order; checkpoints then
 * contain the grid in that order.  Exclude ghost cells: bind, by strides, only what is stepped.
 *
 * Call it on all ranks before the first step.  Only opt_save and opt_load use it. */
int opt_bind_block(int opt, const char *name, int ndim, const int64_t *global_shape, const int64_t *offset,
                   const int64_t *shape);

/* ---- functions of yours that a step or a schedule calls ---- */

/* A callback: set *value and return 0; any other number fails, and should be negative.
 *
 * For a step it is a closure: write the loss to *value, and the gradients to their arrays.  A closure that
 * returns 0 without setting *value fails.  For a schedule, value[0] is the epoch, which you replace by the
 * factor, and value[1] is the parameter group; if value[0] stays unchanged, opt_warning says so, once.
 *
 * It runs on the calling thread, with your floating-point environment.  It may query and clip the same
 * optimizer, but not step, bind or free it.  Callbacks on two threads that call into each other's
 * optimizer deadlock, as does one that waits for another thread's call on the same optimizer.  It must
 * return: if an exception, longjmp or the end of its thread leaves it instead, its optimizer can only be
 * freed. */
typedef int (*opt_callback)(void *user, double *value);

/* Make one step with a closure, which LBFGS calls several times and other classes once.
 *
 * *loss, if not NULL, receives the first loss.  If the closure fails, the step fails with its status, and
 * parameters and state are restored. */
int opt_step_closure(int opt, opt_callback closure, void *user, double *loss);

/* Make the same step by reverse communication, for languages that cannot pass a callback.
 *
 *     while ((status = opt_iterate(opt, loss)) == OPT_EVALUATE)
 *         loss = loss_and_gradient(w, dw);
 *
 * The first call of a step ignores loss.  Until OPT_DONE you may only query, clip or free the optimizer;
 * freeing cancels the step. */
int opt_iterate(int opt, double loss);

/* Check a closure's gradients against differences of its losses, at the parameters as they are.
 *
 * Single values are compared first: about 50 in all, at least 2 and at most 20 of each parameter.  Then all
 * values are, along a random direction.  Each comparison calls the closure 4 times, at distances that suit
 * the dtype: prefer float64.  Values near a kink of the loss are skipped.  A gradient that is not the loss's
 * derivative is OPT_EINVAL, and opt_error() names the parameter, the place and, if it can tell, the mistake:
 * twice the derivative, its negative, zero, in the other order, or added to what was there.  *error, if not
 * NULL, receives the largest relative error of a parameter's gradient.  Arrays and state are left unchanged.
 * */
int opt_check_gradient(int opt, opt_callback closure, void *user, double *error);

/* Make the same check by reverse communication, as opt_iterate makes a step: compute the loss and the
 * gradients while it returns OPT_EVALUATE.  *error is set when it returns OPT_DONE. */
int opt_check_gradient_iterate(int opt, double loss, double *error);

/* Attach a scheduler that calls a function of yours: the lr_lambda of LambdaLR and MultiplicativeLR,
 * "LambdaLR()", or the scale_fn of CyclicLR.  The function and user must outlive the optimizer. */
int opt_schedule_callback(int opt, const char *spec, opt_callback function, void *user);

/* ---- GPUs ---- */

/* Run an optimizer's work for one GPU on a stream of yours, a cudaStream_t or hipStream_t.
 *
 * Bind the parameters on that GPU first.  NULL returns to PyTorch's current stream on all GPUs: the legacy
 * default stream, unless a Python host has chosen another one for its thread.  The stream stays yours and
 * must outlive the optimizer or the next opt_stream.
 *
 * Calls enqueue their work and return, as a kernel launch does.  They wait for the GPU only to return
 * numbers or CPU memory: total_norm, error_if_nonfinite, opt_average_get into CPU memory, opt_save,
 * opt_load and the first step after it.  Later calls of opt_step may be captured into a CUDA graph, which
 * keeps the hyperparameters of that moment. */
int opt_stream(int opt, void *stream);

/* From now on, divide the gradients in each step by *scale, the factor of your loss, and skip steps where
 * *found_inf is 1 rather than 0: what torch.amp.GradScaler does in PyTorch programs.
 *
 * Each is one float32 on the parameters' device, or NULL for none.  They stay yours and must outlive the
 * optimizer or the next opt_grad_scale; a step reads them when it runs, and may leave the divided gradients
 * in your arrays.  Fused kernels read them on the GPU; the first step, and steps by other kernels, wait for
 * the GPU to read found_inf.  A skipped step still counts in opt_average.  Closures scale their loss and
 * gradients themselves. */
int opt_grad_scale(int opt, const void *scale, const void *found_inf);

/* ---- averages of the weights ---- */

/* From now on, average the parameters after each step, as torch.optim.swa_utils does: "AveragedModel()"
 * with equal weights, "AveragedModel(multi_avg_fn=get_ema_multi_avg_fn(0.999))" exponentially. */
int opt_average(int opt, const char *spec);

/* Copy the average of one parameter into data, in the parameter's dtype and shape and in C order.  data is on
 * the parameter's GPU or on the CPU. */
int opt_average_get(int opt, const char *name, void *data);

/* Swap the values of all parameters with their averages, in your arrays; the next call swaps them back.
 * No step is possible in between. */
int opt_average_swap(int opt);

/* Call a method that a class outside torch.optim documents for its users: "train" or "eval".
 *
 * A schedule-free class averages within its steps: opt_call(opt, "eval") puts the weights to evaluate or
 * keep into your arrays, and opt_call(opt, "train") those to continue training from.  It starts in training
 * mode, and checkpoints include the mode. */
int opt_call(int opt, const char *method);

/* ---- checkpoints ---- */

/* Save everything that an optimizer needs to resume: its state, hyperparameters, schedulers, averages and
 * step counts, with the names, shapes and dtypes of its parameters.  The parameters' values are yours to
 * keep, unless opt_checkpoint(opt, "parameters=True") includes them.
 *
 * At every moment path is the complete old file or the complete new one: the new one is written under a
 * temporary name beside it, flushed to disk and renamed.  If several processes save to one path, the last to
 * finish wins.  A symbolic link is kept: the file that it points to is replaced.  The new file gets the old
 * one's mode, group and ACL.  Anything but a regular file, such as a device or a pipe, is rejected.
 *
 * PyTorch can read the file: load_state_dict of the same torch.optim class accepts
 * torch.load(path, weights_only=True)["optimizer"].
 *
 * Ranks (opt_distribute) write one file together, each its own parts.  It is the file that a single process
 * would write, and can be loaded on any number of ranks or in one process.  All ranks pass the same path, on
 * a shared file system.
 *
 * A class outside torch.optim saves and loads by its own methods.  If the result would not restore all of its
 * state, opt_save fails with OPT_ESTATE, so opt_load does not have to.  So it does for SGD with a momentum on
 * an array of opt_bind_sparse, whose momentum PyTorch keeps as a sparse tensor. */
int opt_save(int opt, const char *path);

/* Resume from a file that opt_save wrote, in an optimizer of the same class with parameters of the same names
 * bound in the same groups; order and addresses may differ.
 *
 * Later steps are those of the saved optimizer, bit for bit, except with sqrt='processor' (see opt_init).
 * Schedulers and averages come from the file; if you have attached some, they must match it.  Attach a
 * schedule with a function of yours before loading.
 *
 * Files that PyTorch saved also work: a state_dict, or a dict that contains one (as "optimizer", if there are
 * several).  Parameters are then matched by param_names, or else by order, over ranks by that of rank 0; your
 * schedulers and averages stay as they are.  Unless the file says foreach=True or fused=True, the steps keep the
 * kernels chosen here, whose rounding may differ from PyTorch's.  A learning rate that is a tensor becomes a
 * number, with a warning.
 *
 * Loading runs no code, whatever the file contains.  If anything is wrong with it, nothing changes. */
int opt_load(int opt, const char *path);

/* Choose what opt_save writes for this optimizer and what opt_load restores, from now on:
 *   parameters=True    include the parameters' values: opt_load writes them to your arrays.  Without it you
 *                      restore them yourself, before or after opt_load, and the first step warns
 *                      (opt_warning) if they differ from those at opt_save
 *   schedules=False    opt_load keeps the schedulers, learning rates and other values that schedulers set,
 *                      and takes all other hyperparameters from the file
 * Options that you do not name keep their values; the defaults are "parameters=False, schedules=True". */
int opt_checkpoint(int opt, const char *options);

/* Attach a UTF-8 text of yours to the optimizer: opt_save writes it, and opt_load replaces all texts by
 * those in the file.  NULL removes it.  Names and texts may total at most 1 MiB. */
int opt_attribute(int opt, const char *name, const char *text);

/* Return such a text.
 *
 * NULL on failure: OPT_EINVAL if there is none of that name.  Valid as long as opt_describe's text. */
const char *opt_attribute_get(int opt, const char *name);

/* Write what opt_save would write into a buffer of size bytes, and return how many were used; with a NULL
 * buffer, return how many are needed.  Not for ranks, whose parts no other number of ranks could load: they
 * call opt_save. */
int64_t opt_save_memory(int opt, void *buffer, int64_t size);

/* Resume from what opt_save_memory wrote. */
int opt_load_memory(int opt, const void *buffer, int64_t size);

/* ---- the library itself ---- */

/* Start Python and PyTorch now rather than at the first opt_create, and set options; NULL for none.
 *
 * Options are written "name=value, name=value":
 *   python='/opt/env'               the environment that has PyTorch, as its folder or its interpreter; only
 *                                   before Python has started
 *   num_threads=1                   threads that PyTorch may use in a call (1 per MPI rank, for example).
 *                                   It has one in any case if your program traps floating-point errors or
 *                                   flushes denormals, as one linked with -Ofast or -ffast-math does
 *   error_if_nonfinite=True         reject a step (OPT_ENONFINITE) if a gradient contains inf or nan, at the
 *                                   cost of one pass over each gradient
 *   third_party=True                let a spec name a class outside torch.optim, with its module:
 *                                   "pytorch_optimizer:Lion(lr=1e-4)".  The module is imported, which runs
 *                                   its code; third_party=['pytorch_optimizer'] allows only those packages.
 *                                   Before each step of such a class in Python, values, gradients and state
 *                                   are copied: the class may replace them, and a failed step must change
 *                                   nothing.  opt_warning names what could not be restored
 *   undo=False                      do without the copies of values and state, half the cost of such steps
 *                                   over PyTorch's; a step that fails then leaves both half changed
 *   seed=0                          the seed of such a class's random numbers, 0 by default.  Each optimizer
 *                                   has its own stream, as after torch.manual_seed(seed) and the same for
 *                                   random and numpy; checkpoints include it, and your program's generators
 *                                   stay as they are
 *   check_ranks=True                let ranks (opt_distribute) compare every call that all of them make, and
 *                                   the hyperparameters before it: a mismatch is then an error on all ranks
 *                                   instead of a hang.  Steps run in Python; each call sends 32 bytes more,
 *                                   and each collective 96
 *   master_weights=True             step a float32 copy of each float16 and bfloat16 parameter: your arrays
 *                                   receive it rounded, and anything else written to them is lost unless
 *                                   they are bound again
 *   sqrt='processor'                in recorded steps, use the processor's square root instead of Intel's,
 *                                   which PyTorch uses and which, but in float32 on AMD's processors, takes
 *                                   a third to a half of a step of a million values; one in five float32
 *                                   roots then differs in the last bit
 *   timeout=300                     seconds for which ranks of torch.distributed wait for each other
 *   log='debug'                     what opt_log's function receives: 'info', 'debug', or False for nothing
 *   plans=False                     run every step in Python; 'direct' bypasses it by calling PyTorch's
 *                                   kernels, 'stable' by PyTorch's stable C ABI, which takes a microsecond
 *                                   longer and is the default if the host is Python
 * python, num_threads and log act on the process; the others on optimizers created later.  False switches an
 * option off.
 *
 * Without python=, the environment is the one that the environment variable OPTPLUG_PYTHON names, or else the
 * one recorded when cmake (not pip) built optplug, or else the one that contains liboptplug.
 * OPTPLUG_LIBPYTHON names a libpython to load.  Set-uid programs ignore both variables. */
int opt_init(const char *options);

/* Set a function that receives the library's log, line by line; NULL for none.
 *
 * level is 1 for info, the default, and 2 for debug; line has no newline and is valid only during the call.
 * The function runs at the end of a library call, on the thread that made it, with your floating-point
 * environment and none of our locks held; it may run on several threads at once.  It must not call optplug,
 * and must return.  Set it before opt_init to see the start.  When opt_log returns, the previous function is
 * no longer called.
 *
 * The environment variable OPTPLUG_LOG, info or debug, writes the same lines to stderr immediately. */
typedef void (*opt_log_function)(void *user, int level, const char *line);
int opt_log(opt_log_function function, void *user);

/* Describe an optimizer in a few lines of "name: value"; with opt = 0, the library: which Python, libpython,
 * torch and devices it uses, the options in force, and why PyTorch has one thread where the calling thread's
 * floating-point environment or a limit makes it so.  Starts nothing.  An optimizer's "way" is how its next
 * step runs: "direct" or "stable" (see plans= of opt_init), "recorded" (operations of our own C), or "Python".
 *
 * NULL on failure.  Valid until this thread's next opt_describe, opt_list or opt_attribute_get. */
const char *opt_describe(int opt);

/* List what is available, one per line: "optimizers", "schedulers", "dtypes", "devices"; or, for the name
 * of an optimizer or scheduler, its arguments with their defaults.
 *
 * The optimizers of the packages that third_party names follow PyTorch's, each as "module:class", which also
 * lists its arguments: "pytorch_optimizer:Lion".  This imports the packages.
 *
 * Starts Python if necessary.  NULL on failure.  Valid as long as opt_describe's text. */
const char *opt_list(const char *kind);

/* Return the version of the loaded library: the OPTPLUG_VERSION that it was built with. */
const char *opt_version(void);

#endif /* OPTPLUG_NO_SHORT_NAMES */

/* ---- the same under longer names ---- */

/* For programs that define an opt_init or an OPT_OK of their own.  After
 *
 *     #define OPTPLUG_NO_SHORT_NAMES
 *
 * optplug.h declares only these.  They are the functions and statuses above; optplug.hpp and the other
 * bindings use these names. */
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
int optplug_set_value(int opt, int group, const char *name, double value);
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
typedef int (*optplug_collective)(void *user, const char *what, const char *dtype, const void *send,
                                  void *receive, int64_t count);
int optplug_distribute(int opt, const char *placement, optplug_collective collective, void *user, int rank,
                       int size);
int optplug_bind_block(int opt, const char *name, int ndim, const int64_t *global_shape,
                       const int64_t *offset, const int64_t *shape);
int optplug_step_closure(int opt, optplug_callback closure, void *user, double *loss);
int optplug_iterate(int opt, double loss);
int optplug_check_gradient(int opt, optplug_callback closure, void *user, double *error);
int optplug_check_gradient_iterate(int opt, double loss, double *error);
int optplug_schedule_callback(int opt, const char *spec, optplug_callback function, void *user);
int optplug_stream(int opt, void *stream);
int optplug_grad_scale(int opt, const void *scale, const void *found_inf);
int optplug_average(int opt, const char *spec);
int optplug_average_get(int opt, const char *name, void *data);
int optplug_average_swap(int opt);
int optplug_call(int opt, const char *method);
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
