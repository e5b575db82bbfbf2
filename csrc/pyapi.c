#define _GNU_SOURCE
#include "pyapi.h"

#include <dlfcn.h>
#include <stdatomic.h>
#include <string.h>

#include "error.h"
#include "optplug.h"

struct pyapi py;
static _Atomic int is_published;

/* By its new name, or by the one that it had before Python 3.13. */
static PyThreadState *(*get_current_thread_state)(void);

static int check_version(void *library, const char *liboptplug)
{
    const char *(*get_version)(void) = (const char *(*)(void))dlsym(library, "Py_GetVersion");
    const char *version = get_version ? get_version() : "of unknown version";
    if (strstr(version, "free-threading"))
        return fail(OPT_ESTART,
                    "this process runs a free-threaded Python %.*s, which optplug does not support: use one "
                    "with the global interpreter lock",
                    (int)strcspn(version, " "), version);
    if (strncmp(version, PYTHON_VERSION ".", strlen(PYTHON_VERSION) + 1) == 0)
        return OPT_OK;
    return fail(
        OPT_ESTART,
        "this process runs Python %.*s, and the liboptplug in '%s' was built for Python " PYTHON_VERSION
        ": use the one that is installed for its Python",
        (int)strcspn(version, " "), version, liboptplug);
}

int pyapi_find(void *library, const char *liboptplug)
{
    int status = check_version(library, liboptplug);
    if (status < 0)
        return status;
#define LOOK_UP(name)                                                                                        \
    py.name##_ = (__typeof__(name) *)dlsym(library, #name);                                                  \
    if (!py.name##_)                                                                                         \
        return fail(OPT_ESTART,                                                                              \
                    "the Python of this process has no %s, so it is not CPython " PYTHON_VERSION, #name);
    PYTHON_FUNCTIONS(LOOK_UP)
#undef LOOK_UP
    void *get = dlsym(library, "PyThreadState_GetUnchecked");
    if (!get)
        get = dlsym(library, "_PyThreadState_UncheckedGet");
    get_current_thread_state = (PyThreadState * (*)(void)) get;
    if (!get)
        return fail(OPT_ESTART, "the Python of this process has no PyThreadState_GetUnchecked");
    return OPT_OK;
}

void pyapi_publish(void) { is_published = 1; }

int pyapi_is_published(void) { return is_published; }

int pyapi_runs(void) { return is_published && py.Py_IsInitialized_(); }

PyThreadState *pyapi_thread_state(void) { return pyapi_runs() ? py.PyGILState_GetThisThreadState_() : NULL; }

/* Not PyGILState_Check: that says yes to everybody once a process has made a subinterpreter. */
int pyapi_has_gil(void)
{
    PyThreadState *mine = pyapi_thread_state();
    return mine && mine == get_current_thread_state();
}

void pyapi_clear_exception(void)
{
    PyGILState_STATE state = py.PyGILState_Ensure_();
    py.PyErr_Clear_();
    py.PyGILState_Release_(state);
}

const void *pyapi_address(void) { return (void *)(intptr_t)py.Py_IsInitialized_; }
