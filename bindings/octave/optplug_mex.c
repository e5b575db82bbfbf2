/* optplug.h for Octave and MATLAB, as the class optplug.Optimizer calls it.
 *
 *     [result, ...] = optplug_mex('optplug_get', opt, group, name, 0)
 *
 * Arguments and results are those of MATLAB's calllib: a function's own result, and one for each pointer
 * argument of those that write to it.  Arrays that the library keeps pointers to are held here, each under
 * a number: optplug_mex('hold', array), optplug_copy, 'held', 'release'. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "mex.h"

#define OPTPLUG_NO_SHORT_NAMES
#include "optplug.h"

/* ---- arguments ---- */

static const char *command; /* for messages */

static double number(const mxArray *from)
{
    if (!mxIsNumeric(from) || mxIsComplex(from) || mxGetNumberOfElements(from) != 1)
        mexErrMsgIdAndTxt("optplug:invalid", "%s takes a number here", command);
    return mxGetScalar(from);
}

static int integer(const mxArray *from)
{
    double value = number(from);
    if (!(value >= INT32_MIN && value <= INT32_MAX))
        mexErrMsgIdAndTxt("optplug:invalid", "%s takes an int here, got %g", command, value);
    return (int)value;
}

static int64_t size(const mxArray *from)
{
    double value = number(from);
    if (!(value >= 0 && value <= 9007199254740992.0)) /* 2^53 */
        mexErrMsgIdAndTxt("optplug:invalid", "%s takes a size here, got %g", command, value);
    return (int64_t)value;
}

/* Return a char array, or [] as NULL.  Memory of mxMalloc is freed when the MEX function ends. */
static const char *text(const mxArray *from)
{
    if (!mxIsChar(from) && mxIsEmpty(from))
        return NULL;
    const char *value = mxIsChar(from) ? mxArrayToString(from) : NULL;
    if (!value)
        mexErrMsgIdAndTxt("optplug:invalid", "%s takes text here", command);
    return value;
}

/* ---- arrays held ---- */

struct block {
    double id;
    mxClassID class;
    size_t count, width;
    void *memory;
    struct block *next;
};

static struct block *blocks;

static struct block **find(const mxArray *from)
{
    double id = number(from);
    struct block **at = &blocks;
    while (*at && (*at)->id != id)
        at = &(*at)->next;
    if (!*at)
        mexErrMsgIdAndTxt("optplug:invalid", "%s: no array is held as %g", command, id);
    return at;
}

/* Return the memory of a held array, after checking its number of elements or bytes; NULL for []. */
static void *pointer(const mxArray *from, int64_t count)
{
    if (mxIsEmpty(from))
        return NULL;
    struct block *block = *find(from);
    if ((int64_t)block->count != count)
        mexErrMsgIdAndTxt("optplug:invalid", "%s: the array held has %lld elements, not %lld", command,
                          (long long)block->count, (long long)count);
    return block->memory;
}

static void check_kind(const mxArray *array)
{
    if (!mxIsDouble(array) && !mxIsSingle(array) && !mxIsUint8(array))
        mexErrMsgIdAndTxt("optplug:invalid", "%s takes a double, single or uint8 array", command);
    if (mxIsComplex(array) || mxIsSparse(array))
        mexErrMsgIdAndTxt("optplug:invalid", "%s takes a real, full array", command);
}

static void hold(mxArray **out, const mxArray **in)
{
    static double last_id;
    check_kind(in[0]);
    struct block *block = calloc(1, sizeof *block);
    size_t bytes = mxGetNumberOfElements(in[0]) * mxGetElementSize(in[0]);
    void *memory = malloc(bytes ? bytes : 1);
    if (!block || !memory) {
        free(block);
        free(memory);
        mexErrMsgIdAndTxt("optplug:memory", "no memory for an array of %zu bytes", bytes);
    }
    memcpy(memory, mxGetData(in[0]), bytes);
    *block = (struct block){.id = ++last_id,
                            .class = mxGetClassID(in[0]),
                            .count = mxGetNumberOfElements(in[0]),
                            .width = mxGetElementSize(in[0]),
                            .memory = memory,
                            .next = blocks};
    blocks = block;
    *out = mxCreateDoubleScalar(block->id);
}

static void held(mxArray **out, const mxArray **in)
{
    struct block *block = *find(in[0]);
    *out = mxCreateNumericMatrix(block->count, 1, block->class, mxREAL);
    memcpy(mxGetData(*out), block->memory, block->count * block->width);
}

static void copy(mxArray **out, const mxArray **in)
{
    (void)out;
    struct block *block = *find(in[0]);
    check_kind(in[1]);
    size_t bytes = block->count * block->width;
    if (mxGetClassID(in[1]) != block->class || mxGetNumberOfElements(in[1]) != block->count ||
        size(in[2]) != (int64_t)bytes)
        mexErrMsgIdAndTxt("optplug:invalid", "%s: the array held has another size or class", command);
    memcpy(block->memory, mxGetData(in[1]), bytes);
}

static void release(mxArray **out, const mxArray **in)
{
    (void)out;
    struct block **at = find(in[0]), *block = *at;
    *at = block->next;
    free(block->memory);
    free(block);
}

/* ---- functions of optplug.h ---- */

static mxArray *scalar(double value) { return mxCreateDoubleScalar(value); }

static mxArray *string(const char *value) { return mxCreateString(value ? value : ""); }

static void create(mxArray **out, const mxArray **in) { *out = scalar(optplug_create(text(in[0]))); }

static void init(mxArray **out, const mxArray **in) { *out = scalar(optplug_init(text(in[0]))); }

static void list(mxArray **out, const mxArray **in) { *out = string(optplug_list(text(in[0]))); }

static void describe(mxArray **out, const mxArray **in) { *out = string(optplug_describe(integer(in[0]))); }

static void bind_nd(mxArray **out, const mxArray **in)
{
    int ndim = integer(in[4]);
    int64_t count = 1;
    for (int i = 5; i <= 9; i += 2)
        if (!mxIsInt64(in[i]) || mxGetNumberOfElements(in[i]) != (size_t)ndim)
            mexErrMsgIdAndTxt("optplug:invalid", "%s takes an int64 array of ndim elements here", command);
    const int64_t *shape = mxGetData(in[5]);
    for (int i = 0; i < ndim; i++)
        if (shape[i] < 0 || __builtin_mul_overflow(count, shape[i], &count))
            mexErrMsgIdAndTxt("optplug:invalid", "%s: the shape is too large", command);
    *out = scalar(optplug_bind_nd(integer(in[0]), text(in[1]), text(in[2]), text(in[3]), ndim, shape,
                                  pointer(in[6], count), mxGetData(in[7]), pointer(in[8], count),
                                  mxGetData(in[9])));
}

static void clip_grad_norm(mxArray **out, const mxArray **in)
{
    double norm = number(in[4]);
    out[0] =
        scalar(optplug_clip_grad_norm(integer(in[0]), number(in[1]), number(in[2]), integer(in[3]), &norm));
    out[1] = scalar(norm);
}

static void get(mxArray **out, const mxArray **in)
{
    double value = number(in[3]);
    const char *name = text(in[2]);
    out[0] = scalar(optplug_get(integer(in[0]), integer(in[1]), name, &value));
    out[1] = string(name);
    out[2] = scalar(value);
}

static void set(mxArray **out, const mxArray **in)
{
    *out = scalar(optplug_set(integer(in[0]), integer(in[1]), text(in[2])));
}

static void set_value(mxArray **out, const mxArray **in)
{
    *out = scalar(optplug_set_value(integer(in[0]), integer(in[1]), text(in[2]), number(in[3])));
}

static void check_gradient(mxArray **out, const mxArray **in)
{
    double error = number(in[2]);
    out[0] = scalar(optplug_check_gradient_iterate(integer(in[0]), number(in[1]), &error));
    out[1] = scalar(error);
}

static void attribute(mxArray **out, const mxArray **in)
{
    *out = scalar(optplug_attribute(integer(in[0]), text(in[1]), text(in[2])));
}

static void attribute_get(mxArray **out, const mxArray **in)
{
    *out = string(optplug_attribute_get(integer(in[0]), text(in[1])));
}

static void average_get(mxArray **out, const mxArray **in)
{
    *out = scalar(optplug_average_get(integer(in[0]), text(in[1]), (*find(in[2]))->memory));
}

static void save_memory(mxArray **out, const mxArray **in)
{
    int64_t bytes = size(in[2]);
    *out = scalar((double)optplug_save_memory(integer(in[0]), pointer(in[1], bytes), bytes));
}

static void load_memory(mxArray **out, const mxArray **in)
{
    int64_t bytes = size(in[2]);
    *out = scalar(optplug_load_memory(integer(in[0]), pointer(in[1], bytes), bytes));
}

/* What can be called: by a function above, or one of the library's with arguments of one of these kinds. */
static const struct {
    const char *name;
    int arguments;
    void (*run)(mxArray **out, const mxArray **in);
    int (*with_opt)(int opt);
    int (*with_text)(int opt, const char *text);
    int (*with_double)(int opt, double value);
    int (*give_number)(void);
    const char *(*give_text)(void);
} commands[] = {
    {"hold", 1, .run = hold},
    {"held", 1, .run = held},
    {"release", 1, .run = release},
    {"optplug_copy", 3, .run = copy},
    {"optplug_create", 1, .run = create},
    {"optplug_free", 1, .with_opt = optplug_free},
    {"optplug_bind_nd", 10, .run = bind_nd},
    {"optplug_group", 2, .with_text = optplug_group},
    {"optplug_step", 1, .with_opt = optplug_step},
    {"optplug_iterate", 2, .with_double = optplug_iterate},
    {"optplug_check_gradient_iterate", 3, .run = check_gradient},
    {"optplug_zero_grad", 1, .with_opt = optplug_zero_grad},
    {"optplug_clip_grad_norm", 5, .run = clip_grad_norm},
    {"optplug_clip_grad_value", 2, .with_double = optplug_clip_grad_value},
    {"optplug_get", 4, .run = get},
    {"optplug_set", 3, .run = set},
    {"optplug_set_value", 4, .run = set_value},
    {"optplug_schedule", 2, .with_text = optplug_schedule},
    {"optplug_schedule_step", 1, .with_opt = optplug_schedule_step},
    {"optplug_schedule_step_metric", 2, .with_double = optplug_schedule_step_metric},
    {"optplug_average", 2, .with_text = optplug_average},
    {"optplug_average_get", 3, .run = average_get},
    {"optplug_average_swap", 1, .with_opt = optplug_average_swap},
    {"optplug_call", 2, .with_text = optplug_call},
    {"optplug_checkpoint", 2, .with_text = optplug_checkpoint},
    {"optplug_attribute", 3, .run = attribute},
    {"optplug_attribute_get", 2, .run = attribute_get},
    {"optplug_save", 2, .with_text = optplug_save},
    {"optplug_load", 2, .with_text = optplug_load},
    {"optplug_save_memory", 3, .run = save_memory},
    {"optplug_load_memory", 3, .run = load_memory},
    {"optplug_init", 1, .run = init},
    {"optplug_list", 1, .run = list},
    {"optplug_describe", 1, .run = describe},
    {"optplug_version", 0, .give_text = optplug_version},
    {"optplug_error", 0, .give_text = optplug_error},
    {"optplug_error_status", 0, .give_number = optplug_error_status},
    {"optplug_warning", 0, .give_text = optplug_warning},
    {"optplug_traceback", 0, .give_text = optplug_traceback},
};

void mexFunction(int nlhs, mxArray *plhs[], int nrhs, const mxArray *prhs[])
{
    enum { COMMANDS = sizeof commands / sizeof *commands, MOST_RESULTS = 3 };
    if (!mexIsLocked())
        mexLock(); /* the library keeps pointers into blocks */
    command = "optplug_mex";
    if (nrhs < 1)
        mexErrMsgIdAndTxt("optplug:invalid", "optplug_mex takes the name of a function of optplug.h");
    command = text(prhs[0]);
    int i = 0;
    while (i < COMMANDS && (!command || strcmp(commands[i].name, command) != 0))
        i++;
    if (i == COMMANDS)
        mexErrMsgIdAndTxt("optplug:invalid", "optplug_mex has no function '%s'", command ? command : "");
    if (nrhs - 1 != commands[i].arguments)
        mexErrMsgIdAndTxt("optplug:invalid", "%s takes %d arguments, got %d", command, commands[i].arguments,
                          nrhs - 1);
    mxArray *out[MOST_RESULTS] = {NULL};
    const mxArray **in = prhs + 1;
    if (commands[i].run)
        commands[i].run(out, in);
    else if (commands[i].with_opt)
        out[0] = scalar(commands[i].with_opt(integer(in[0])));
    else if (commands[i].with_text)
        out[0] = scalar(commands[i].with_text(integer(in[0]), text(in[1])));
    else if (commands[i].with_double)
        out[0] = scalar(commands[i].with_double(integer(in[0]), number(in[1])));
    else if (commands[i].give_number)
        out[0] = scalar(commands[i].give_number());
    else
        out[0] = string(commands[i].give_text());
    for (int k = 0; k < MOST_RESULTS && (k < nlhs || k == 0) && out[k]; k++)
        plhs[k] = out[k];
}
