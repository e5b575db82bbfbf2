#define _GNU_SOURCE
#include "start.h"

#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "apart.h"
#include "early_end.h"
#include "end.h"
#include "error.h"
#include "find.h"
#include "fork.h"
#include "import.h"
#include "log.h"
#include "openmp.h"
#include "optplug.h"
#include "pyapi.h"
#include "runtime.h"
#include "shield.h"
#include "signals.h"
#include "torch.h"

static struct environment environment;
static struct { /* neither Python nor torch can be started twice: it is for good */
    char message[1024];
    char *traceback;
} failure;

/* The thread count belongs to whoever's OpenMP the process finds first, which is the one torch uses, unless
 * torch keeps to its own libraries, or nobody else has one; torch for ARM does not let others find its own. */
static void find_openmp(void)
{
    int is_found = !runtime.keeps_apart && dlsym(RTLD_DEFAULT, "omp_get_max_threads");
    openmp_find(is_found || !torch_library() ? RTLD_DEFAULT : torch_library());
}

/* Find the process's Python, or else load one, and fill in `py`. */
static int load_python(const char *python)
{
    environment.python[0] = '\0';
    int status = find_library(&environment);
    if (status < 0)
        return status;
    void *opened = NULL;
    if (!dlsym(RTLD_DEFAULT, "Py_IsInitialized") && !(opened = find_loaded_libpython())) {
        status = find_python(&environment, python);
        if (status == OPT_OK && !(opened = find_libpython(&environment)))
            status = OPT_ESTART;
        if (status < 0)
            return status;
    }
    status = pyapi_find(opened ? opened : RTLD_DEFAULT, environment.library);
    if (status == OPT_OK && !environment.python[0])
        log_line(LOG_INFO, "Python: the one that this process has");
    /* A libpython that lies in the host and does not run needs an environment as well. */
    if (status == OPT_OK && !environment.python[0] && !py.Py_IsInitialized_())
        status = find_python(&environment, python);
    if (status < 0 && opened)
        dlclose(opened);
    return status;
}

/* Let later calls repeat this thread's last error, and try no more. */
static void keep_failure(void)
{
    snprintf(failure.message, sizeof failure.message, "%s", error_message());
    failure.traceback = strdup(error_traceback());
}

static int repeat_failure(void)
{
    error_record(OPT_ESTART, failure.message, failure.traceback ? failure.traceback : "");
    return OPT_ESTART;
}

static int fail_to_initialize(PyStatus status)
{
    fail(OPT_ESTART, "Python '%.300s' did not start: %s", environment.python,
         status.err_msg ? status.err_msg : "it gave no reason");
    keep_failure();
    return OPT_ESTART;
}

/* Start Python so that nothing of the host changes and nothing of the host's environment (PYTHONHOME,
 * PYTHONPATH, the locale) reaches it. */
static int initialize_python(void)
{
    PyPreConfig before;
    py.PyPreConfig_InitIsolatedConfig_(&before);
    before.configure_locale = 0;
    before.coerce_c_locale = 0;
    before.utf8_mode = 1;
    PyStatus status = py.Py_PreInitialize_(&before);
    if (py.PyStatus_Exception_(status))
        return fail_to_initialize(status);

    PyConfig config;
    py.PyConfig_InitIsolatedConfig_(&config);
    config.install_signal_handlers = 0;
    config.configure_c_stdio = 0;
    config.parse_argv = 0;
    config.pathconfig_warnings = 0;
    /* The interpreter's path, and never `home`: from it Python finds pyvenv.cfg, and so the environment. */
    status = py.PyConfig_SetBytesString_(&config, &config.executable, environment.python);
    if (!py.PyStatus_Exception_(status))
        status = py.PyConfig_SetBytesString_(&config, &config.program_name, environment.python);
    if (!py.PyStatus_Exception_(status))
        status = py.Py_InitializeFromConfig_(&config);
    py.PyConfig_Clear_(&config);
    if (py.PyStatus_Exception_(status))
        return fail_to_initialize(status);
    runtime.ours = 1;
    return OPT_OK;
}

/* Where the process ends while another thread is here. */
static void give_up(void) { runtime.ended = 1; }

static void keep_gil(void) { py.PyGILState_Ensure_(); }

/* Call with runtime.start_lock held and the GIL not. */
static int start_locked(void)
{
    if (runtime.started)
        return OPT_OK;
    if (*failure.message)
        return repeat_failure();
    struct affinity affinity;
    affinity_save(&affinity);
    struct sigaction actions[NSIG];
    signals_save(actions);
    int fresh = !py.Py_IsInitialized_();
    if (fresh) {
        early_end_watch(give_up, keep_gil);
        double begun = log_seconds();
        int status = initialize_python();
        if (status < 0) {
            early_end_unwatch();
            return status;
        }
        early_end_python_runs();
        log_line(LOG_INFO, "started Python in %.2f s", log_seconds() - begun);
    }
    PyGILState_STATE state = fresh ? PyGILState_UNLOCKED : py.PyGILState_Ensure_();
    int is_final, status = import_bridge(&environment, affinity_count(&affinity), &is_final);
    if (status == OPT_OK) {
        atexit(end_calls);
        runtime.started = 1;
    } else if (is_final)
        keep_failure();
    early_end_unwatch();
    if (fresh)
        py.PyEval_SaveThread_();
    else
        py.PyGILState_Release_(state);
    if (runtime.ours) /* Python takes SIGINT when torch imports its signal module, however it is configured */
        signals_restore(actions, pyapi_address());
    affinity_restore(&affinity); /* torch's OpenMP narrows it where OMP_PROC_BIND or the like is set */
    return status;
}

static int check_choice(const char *python)
{
    char chosen[PATH_MAX];
    if (python && *python && strcmp(python, environment.python) != 0 &&
        !(find_interpreter(python, chosen) && strcmp(chosen, environment.python) == 0))
        return fail(
            OPT_ESTATE,
            "python='%.400s' is too late: Python '%.400s' is already running: name it in the first opt_init, "
            "before any other call, or in OPTPLUG_PYTHON",
            python, environment.python);
    return runtime_check();
}

int start_python(const char *python)
{
    static pthread_once_t watching = PTHREAD_ONCE_INIT;
    if (runtime.started)
        return check_choice(python);
    if (runtime.torn)
        return fail(OPT_ESTART, "this process was forked while another thread was starting Python: fork "
                                "before opt_init, or after it has returned");
    pthread_once(&watching, fork_watch);

    /* Twice, since the shield is whole only when OpenMP and Python's functions are found. */
    struct shield outer, inner;
    shield_enter(&outer);
    log_start();
    find_openmp(); /* the host's, whose thread count the import of torch would change */
    pthread_mutex_lock(&runtime.load_lock);
    double begun = log_seconds();
    int was_loaded = pyapi_is_published(), status = was_loaded ? OPT_OK : load_python(python);
    Dl_info info;
    if (!was_loaded && status == OPT_OK) {
        if (dladdr(pyapi_address(), &info))
            log_line(LOG_INFO, "found libpython '%.500s' in %.2f s", info.dli_fname, log_seconds() - begun);
        pyapi_publish();
    }
    pthread_mutex_unlock(&runtime.load_lock);
    if (status == OPT_OK) {
        shield_enter(&inner);
        pthread_mutex_lock(&runtime.start_lock);
        status = start_locked();
        pthread_mutex_unlock(&runtime.start_lock);
        shield_leave(&inner);
        find_openmp(); /* torch's own, where the host had none */
    }
    shield_leave(&outer);
    return status < 0 ? status : check_choice(python);
}

int start_describe(char *text, size_t size)
{
    char libpython[PATH_MAX] = "not loaded yet";
    Dl_info info;
    if (pyapi_is_published() && dladdr(pyapi_address(), &info))
        snprintf(libpython, sizeof libpython, "%s", info.dli_fname);
    struct environment library;
    find_library(&library);
    char torchs[2048] = "";
    if (runtime.started)
        apart_describe(torchs, sizeof torchs);
    const char *starter = runtime.ours ? "optplug" : "the host";
    snprintf(text, size, "optplug: %s\nlibrary: %s\nlibpython: %s\npython started by: %s\n%s",
             OPTPLUG_VERSION, library.library, libpython, runtime.started ? starter : "nobody yet", torchs);
    size_t used = strlen(text);
    const char *alone = shield_innermost()->alone;
    if (alone)
        snprintf(text + used, size - used, "one thread because: the calling thread %s\n", alone);
    if (runtime_is_up())
        return 1;
    used = strlen(text);
    snprintf(text + used, size - used, "python: %s\n",
             environment.python[0] ? environment.python : "not chosen yet");
    return 0;
}
