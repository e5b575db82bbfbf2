/* What MATLAB's loadlibrary does with addresses, for the stand-in beside this file: open a library, find a
 * function, call a thunk with a stack of arguments, and read and write memory. */
#define _DEFAULT_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "mex.h"

static uint64_t address(const mxArray *from)
{
    if (!mxIsUint64(from) || mxGetNumberOfElements(from) != 1)
        mexErrMsgIdAndTxt("shim:address", "an address must be a uint64");
    return *(uint64_t *)mxGetData(from);
}

static mxArray *uint64(uint64_t value)
{
    mxArray *result = mxCreateNumericMatrix(1, 1, mxUINT64_CLASS, mxREAL);
    *(uint64_t *)mxGetData(result) = value;
    return result;
}

static mxArray *bytes(const void *from, size_t n)
{
    mxArray *result = mxCreateNumericMatrix(1, n, mxUINT8_CLASS, mxREAL);
    memcpy(mxGetData(result), from, n);
    return result;
}

/* Call a thunk that gives a result of this type, and return the result's bytes. */
static mxArray *call(void *thunk, void (*fcn)(void), const char *stack, int size, const char *type)
{
    if (!strcmp(type, "int32")) {
        int32_t result = ((int32_t (*)(void (*)(void), const char *, int))thunk)(fcn, stack, size);
        return bytes(&result, sizeof result);
    }
    if (!strcmp(type, "int64")) {
        int64_t result = ((int64_t (*)(void (*)(void), const char *, int))thunk)(fcn, stack, size);
        return bytes(&result, sizeof result);
    }
    if (!strcmp(type, "cstring")) {
        const char *result = ((const char *(*)(void (*)(void), const char *, int))thunk)(fcn, stack, size);
        return mxCreateString(result ? result : "");
    }
    if (*type)
        mexErrMsgIdAndTxt("shim:type", "results of type '%s' are not known here", type);
    ((void (*)(void (*)(void), const char *, int))thunk)(fcn, stack, size);
    return mxCreateDoubleMatrix(0, 0, mxREAL);
}

void mexFunction(int nlhs, mxArray *plhs[], int nrhs, const mxArray *prhs[])
{
    (void)nlhs;
    char name[1000] = "", type[20] = "", what[10] = "";
    mxGetString(prhs[0], what, sizeof what);
    if (nrhs > 2 && mxIsChar(prhs[nrhs - 1]))
        mxGetString(prhs[nrhs - 1], type, sizeof type);
    if (!strcmp(what, "open")) {
        mxGetString(prhs[1], name, sizeof name);
        void *library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
        if (!library)
            mexErrMsgIdAndTxt("shim:open", "%s", dlerror());
        plhs[0] = uint64((uintptr_t)library);
    } else if (!strcmp(what, "close")) {
        dlclose((void *)(uintptr_t)address(prhs[1]));
    } else if (!strcmp(what, "find")) {
        mxGetString(prhs[2], name, sizeof name);
        plhs[0] = uint64((uintptr_t)dlsym((void *)(uintptr_t)address(prhs[1]), name));
    } else if (!strcmp(what, "call")) {
        void *thunk = (void *)(uintptr_t)address(prhs[1]);
        void (*fcn)(void) = (void (*)(void))(uintptr_t)address(prhs[2]);
        plhs[0] = call(thunk, fcn, mxGetData(prhs[3]), (int)mxGetNumberOfElements(prhs[3]), type);
    } else if (!strcmp(what, "alloc")) {
        size_t n = mxGetNumberOfElements(prhs[1]);
        void *memory = malloc(n + 1);
        memcpy(memory, mxGetData(prhs[1]), n);
        plhs[0] = uint64((uintptr_t)memory);
    } else if (!strcmp(what, "read")) {
        plhs[0] = bytes((void *)(uintptr_t)address(prhs[1]), (size_t)mxGetScalar(prhs[2]));
    } else if (!strcmp(what, "free")) {
        /* Who has kept the pointer too long shall notice. */
        memset((void *)(uintptr_t)address(prhs[1]), 0xff, (size_t)mxGetScalar(prhs[2]));
        free((void *)(uintptr_t)address(prhs[1]));
    } else {
        mexErrMsgIdAndTxt("shim:what", "the shim does not know '%s'", what);
    }
}
