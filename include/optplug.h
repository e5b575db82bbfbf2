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
 * ("AdamW(lr=3e-4, betas=(0.9, 0.99))"), dtypes ("float32", "float64", "bfloat16"), devices ("cpu").
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
 * different optimizers may run side by side.  The first call that needs Python starts it (about two
 * seconds, for PyTorch's import) and it stays until the process ends. */
#ifndef OPTPLUG_H
#define OPTPLUG_H

#include <stdint.h>

#define OPTPLUG_VERSION "0.1.0"

#ifdef __cplusplus
extern "C" {
#endif

/* What a call returns.  These numbers never change; new ones may be added. */
enum {
    OPT_OK = 0,
    OPT_EINVAL = -1,   /* an argument is wrong */
    OPT_EHANDLE = -2,  /* no such optimizer: freed already, or never created */
    OPT_ESTATE = -3,   /* right arguments, wrong moment: a step with nothing bound, for example */
    OPT_ESTART = -4,   /* Python or PyTorch could not be found or started */
    OPT_ERUNTIME = -5, /* PyTorch raised an error while it worked: opt_traceback() says where */
    OPT_ENOMEM = -6    /* out of memory, or out of handles */
};

/* ---- one optimizer, from creation to the end ---- */

/* Create an optimizer from a constructor call, written as PyTorch's documentation writes it but
 * without the parameters: "SGD(lr=0.1, momentum=0.9)".
 *
 * Any class of torch.optim will do.  Returns a handle, which is positive.  Hyperparameters are checked
 * here, by PyTorch.  Where the spec says nothing of fused, foreach, capturable or differentiable,
 * PyTorch's fused kernels are used if the class has them and the bound arrays allow it. */
int opt_create(const char *spec);

/* Lend the optimizer one parameter: n values, and the array its gradient arrives in.
 *
 * Both stay yours, are read and written in place, and must outlive the optimizer or the next bind of
 * the same name.  Bind every parameter before the first step.  Binding a name again moves that
 * parameter to other arrays of the same shape and dtype, at any time, and keeps its state. */
int opt_bind(int opt, const char *name, const char *dtype, int64_t n, void *data, void *grad);

/* Make one step: update every bound array from the gradient in its gradient array. */
int opt_step(int opt);

/* End an optimizer and release its state.  The bound arrays are left as they are. */
int opt_free(int opt);

/* ---- when something goes wrong ---- */

/* Return this thread's last error, one line; "" if there was none.
 *
 * It stays until this thread's next failing call. */
const char *opt_error(void);

/* Return the Python traceback of this thread's last error, many lines; "" if Python was not in it. */
const char *opt_traceback(void);

/* ---- arrays of any shape and layout ---- */

/* Lend the optimizer one parameter of ndim dimensions, contiguous or strided.
 *
 * shape has ndim values, and so have strides and grad_strides, which count elements, not bytes.
 * NULL strides mean row-major (C order).  A column-major (Fortran) array of shape {m, n} has strides
 * {1, m}.  Strides may not be negative, nor let two elements share memory.  ndim 0 is a scalar. */
int opt_bind_nd(int opt, const char *name, const char *dtype, const char *device, int ndim,
                const int64_t *shape, void *data, const int64_t *strides, void *grad,
                const int64_t *grad_strides);

/* ---- the library itself ---- */

/* Start Python and PyTorch now rather than at the first opt_create, with options; NULL for none.
 *
 * Options are written "name=value, name=value":
 *   python='/opt/env/bin/python3'   the environment that has PyTorch; must come before the start
 *   num_threads=1                   threads that PyTorch may use in a call (1 for one an MPI rank)
 *   third_party=True                let a spec name a class outside torch.optim, with its module:
 *                                   "pytorch_optimizer:Lion(lr=1e-4)"; the module is imported
 * Without python=, the environment is the one that the environment variable OPTPLUG_PYTHON names, or
 * else the one in which liboptplug lies.  OPTPLUG_LIBPYTHON names a libpython to load. */
int opt_init(const char *options);

/* Describe an optimizer in a few lines of "name: value"; with opt = 0 the library itself: which
 * Python, libpython, torch and devices are used.  Starts nothing.
 *
 * NULL on failure.  The text is this thread's, until its next opt_describe. */
const char *opt_describe(int opt);

/* Return the version of the library that is loaded: OPTPLUG_VERSION, as it was when that was built. */
const char *opt_version(void);

#ifdef __cplusplus
}
#endif

#endif
