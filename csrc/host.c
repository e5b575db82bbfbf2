/* Python's functions are found with dlsym and its headers give only types, so that liboptplug links no
 * libpython: a host that is a Python has one already, maybe inside its own executable. */
#define _GNU_SOURCE
#include "host.h"

#include <Python.h>

#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "apart.h"
#include "callback.h"
#include "early_end.h"
#include "error.h"
#include "find.h"
#include "handle.h"
#include "log.h"
#include "openmp.h"
#include "optplug.h"
#include "plan.h"
#include "room.h"
#include "signals.h"

#define PYTHON_FUNCTIONS(F)                                                                                  \
    F(Py_IsInitialized)                                                                                      \
    F(PyPreConfig_InitIsolatedConfig)                                                                        \
    F(Py_PreInitialize)                                                                                      \
    F(PyConfig_InitIsolatedConfig)                                                                           \
    F(PyConfig_SetBytesString)                                                                               \
    F(PyConfig_Clear)                                                                                        \
    F(Py_InitializeFromConfig)                                                                               \
    F(PyStatus_Exception)                                                                                    \
    F(PyGILState_Ensure)                                                                                     \
    F(PyGILState_Release)                                                                                    \
    F(PyGILState_GetThisThreadState)                                                                         \
    F(PyEval_SaveThread)                                                                                     \
    F(PyEval_RestoreThread)                                                                                  \
    F(PyEval_GetBuiltins)                                                                                    \
    F(PyDict_New)                                                                                            \
    F(PyDict_SetItemString)                                                                                  \
    F(PyDict_GetItemString)                                                                                  \
    F(PyUnicode_DecodeFSDefault)                                                                             \
    F(PyUnicode_AsUTF8)                                                                                      \
    F(PyCFunction_NewEx)                                                                                     \
    F(PyRun_String)                                                                                          \
    F(PyErr_Clear)                                                                                           \
    F(PyOS_BeforeFork)                                                                                       \
    F(PyOS_AfterFork_Parent)                                                                                 \
    F(PyOS_AfterFork_Child)                                                                                  \
    F(Py_DecRef)

#define DECLARE(name) __typeof__(name) *name##_;
static struct {
    PYTHON_FUNCTIONS(DECLARE)
} py;

/* By its new name, or by the one that it had before Python 3.13. */
static PyThreadState *(*get_current_thread_state)(void);

static struct environment environment;
static _Atomic int loaded;      /* `py` is filled in */
static int ours;                /* we started Python, rather than borrowed it */
static _Atomic int keeps_apart; /* torch was loaded so that it finds its own libraries before the host's */
static struct {                 /* neither Python nor torch can be started twice: it is for good */
    char message[1024];
    char *traceback;
} failure;
static const optplug_python *_Atomic bridge; /* attached; a Python host may do that before any start */
static _Atomic int started;
static _Atomic int ended;  /* Python is gone, or the process about to go */
static _Atomic int forked; /* we are the child of a process that had started */
static _Atomic int torn;   /* ... or that was about to, in another thread */

/* Two locks, because the first one's owner never wants the GIL: a thread that comes with the GIL can
 * take it, then let go of the GIL and queue for the second. */
static pthread_mutex_t load_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_mutex_t start_lock = PTHREAD_MUTEX_INITIALIZER;

static _Atomic int torch_threads;
static _Thread_local struct thread {
    int is_known;            /* torch and OpenMP have seen it */
    int granted, refused;    /* how many threads its OpenMP can have, and cannot */
    struct host_state *call; /* what the innermost call has put aside */
} this_thread;

/* ---- the shield ---- */

/* The thread count belongs to whoever's OpenMP the process finds first, which is the one torch uses,
 * unless torch keeps to its own libraries. */
static void find_openmp(void)
{
    openmp_find(keeps_apart && plan_torch_library() ? plan_torch_library() : RTLD_DEFAULT);
}

/* Return how many threads OpenMP may use of `count`: all, or one where they cannot be made, since GCC's then
 * ends the process.  What it has once made for this thread it keeps. */
static int affordable(int count)
{
    if (count <= this_thread.granted || count <= 1 || openmp_in_parallel())
        return count;
    if (count == this_thread.refused ||
        (!room_is_plenty(count - 1) && room_for_threads(count - 1) < count - 1)) {
        this_thread.refused = count;
        return 1;
    }
    this_thread.granted = count;
    return count;
}

/* A host with floating-point traps, another rounding mode or flush-to-zero has them in its OpenMP workers
 * too, and torch shares those: there, torch keeps to this thread, which host_enter has put in order.  So
 * it does in a forked child, which has no workers, though OpenMP waits for them. */
static void enter_openmp(int alone, int hosts_threads)
{
    if (!this_thread.is_known && started && !ended && py.Py_IsInitialized_()) {
        /* torch sets the count itself, once a thread: let it, then overrule */
        if (!plan_enter_thread())
            host_python()->enter_thread();
        this_thread.is_known = 1;
    }
    openmp_set_threads(alone ? 1 : affordable(torch_threads ? torch_threads : hosts_threads));
}

#if defined __x86_64__ && defined __GLIBC__
static unsigned short x87_control(void)
{
    unsigned short control;
    __asm__ volatile("fnstcw %0" : "=m"(control));
    return control;
}

static unsigned short x87_status(void)
{
    unsigned short status;
    __asm__ volatile("fnstsw %0" : "=m"(status));
    return status & 0x3F;
}

/* The C library's functions take a quarter of a microsecond, which is more than a small step. */
static int save_usual_arithmetic(struct host_state *saved)
{
    saved->x87_control = x87_control();
    saved->x87_status = x87_status();
    saved->mxcsr = __builtin_ia32_stmxcsr();
    return (saved->mxcsr & 0xFFC0) == 0x1F80 && (saved->x87_control & 0xF3F) == 0x33F;
}

static void restore_usual_arithmetic(const struct host_state *saved)
{
    if (x87_control() != saved->x87_control || x87_status() != saved->x87_status) {
        fenv_t now;
        fegetenv(&now);
        now.__control_word = saved->x87_control;
        now.__status_word = (unsigned short)((now.__status_word & ~0x3F) | saved->x87_status);
        fesetenv(&now);
    }
    __builtin_ia32_ldmxcsr(saved->mxcsr);
}
#else
static int save_usual_arithmetic(struct host_state *saved)
{
    (void)saved;
    return 0;
}

static void restore_usual_arithmetic(const struct host_state *saved) { (void)saved; }
#endif

/* Save the host's floating-point environment, set C's own, and tell whether the host's differs in more
 * than flags. */
static int enter_arithmetic(struct host_state *saved)
{
    saved->usual_arithmetic = save_usual_arithmetic(saved);
    if (saved->usual_arithmetic)
        return 0;
    int unusual = fegetround() != FE_TONEAREST;
#ifdef __GLIBC__
    unusual |= fegetexcept() != 0;
#endif
#ifdef __SSE__
    unusual |= (__builtin_ia32_stmxcsr() & 0xFFC0) != 0x1F80; /* masks, rounding, flush-to-zero */
#elif defined __aarch64__
    uint64_t control;
    __asm__("mrs %0, fpcr" : "=r"(control));
    unusual |= control != 0;
#endif
    fegetenv(&saved->floating_point);
    /* Not feholdexcept: rounding mode and flush-to-zero must go as well, or Python misreads numbers. */
    fesetenv(FE_DFL_ENV);
    return unusual;
}

static void leave_arithmetic(const struct host_state *saved)
{
    if (saved->usual_arithmetic)
        restore_usual_arithmetic(saved);
    else
        fesetenv(&saved->floating_point);
}

/* Not PyGILState_Check: that says yes to everybody once a process has made a subinterpreter. */
static int has_gil(void)
{
    PyThreadState *mine = host_thread_state();
    return mine && mine == get_current_thread_state();
}

static const void *some_function_of_pythons(void) { return (void *)(intptr_t)py.Py_IsInitialized_; }

/* One that came before the call began, and that Python has noticed in it. */
static void interrupt_host(void)
{
    if (this_thread.call && this_thread.call->holds_interrupts)
        signals_note_interrupt();
}

void host_enter(struct host_state *saved)
{
    /* A thread that is cancelled in a call would take our locks and Python's along: so here or later. */
    pthread_testcancel();
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &saved->cancel_state);
    saved->error_number = errno;
    int alone = enter_arithmetic(saved) || forked;
    struct thread *me = &this_thread; /* which takes time to be found */
    if (!me->is_known)
        openmp_meet_thread();
    saved->openmp_threads = openmp_threads();
    if (saved->openmp_threads)
        enter_openmp(alone, saved->openmp_threads);

    /* A caller that holds the GIL (ctypes.PyDLL) must not wait for our locks with it. */
    saved->interpreter_lock = has_gil() ? py.PyEval_SaveThread_() : NULL;
    saved->holds_interrupts = !ours && started && signals_hold(&saved->interrupt, some_function_of_pythons());
    saved->callback = NULL;
    saved->outer = me->call ? callback_sweep(me->call) : NULL;
    me->call = saved;
}

/* With `ends` the call ends here, rather than calling a function of the host's. */
static void leave(const struct host_state *saved, int ends)
{
    if (saved->holds_interrupts)
        signals_release(&saved->interrupt);
    if (saved->interpreter_lock)
        py.PyEval_RestoreThread_(saved->interpreter_lock);
    if (saved->openmp_threads)
        openmp_set_threads(saved->openmp_threads);
    leave_arithmetic(saved);
    errno = saved->error_number;
    this_thread.call = saved->outer;
    if (ends && log_level && !saved->outer)
        log_deliver();
    if (saved->cancel_state != PTHREAD_CANCEL_DISABLE)
        pthread_setcancelstate(saved->cancel_state, NULL);
}

void host_leave(const struct host_state *saved) { leave(saved, 1); }

struct host_state *host_call(void) { return this_thread.call; }

/* An interpreter lock that the host came with is given back when its call ends, not here. */
void host_suspend(struct host_state *outside)
{
    struct host_state *call = this_thread.call;
    *outside = *call;
    outside->interpreter_lock = NULL;
    leave(outside, 0);
    this_thread.call = call; /* the call around those that the function makes */
}

void host_resume(struct host_state *outside)
{
    struct host_state *call = this_thread.call;
    host_enter(outside);
    outside->interpreter_lock = call->interpreter_lock;
    outside->callback = call->callback;
    outside->outer = call->outer;
    *call = *outside;
    this_thread.call = call;
}

void *host_thread_state(void)
{
    return loaded && py.Py_IsInitialized_() ? py.PyGILState_GetThisThreadState_() : NULL;
}

static void set_threads(int count) { torch_threads = count; }

int host_thread_count(int count)
{
    if (count > 0 && openmp_threads() > 0)
        openmp_set_threads(affordable(count));
    return openmp_threads();
}

/* ---- the start ---- */

static int check_version(void *library)
{
    const char *(*get_version)(void) = (const char *(*)(void))dlsym(library, "Py_GetVersion");
    const char *version = get_version ? get_version() : "of unknown version";
    if (strncmp(version, PYTHON_VERSION ".", strlen(PYTHON_VERSION) + 1) == 0)
        return OPT_OK;
    return fail(
        OPT_ESTART,
        "this process runs Python %.*s, and the liboptplug in '%s' was built for Python " PYTHON_VERSION
        ": use the one that is installed for its Python",
        (int)strcspn(version, " "), version, environment.library);
}

/* Fill in `py` from a library. */
static int look_up_functions(void *library)
{
    int status = check_version(library);
    if (status < 0)
        return status;
#define LOOK_UP(name)                                                                                        \
    py.name##_ = (__typeof__(name) *)dlsym(library, #name);                                                  \
    if (!py.name##_)                                                                                         \
        return fail(OPT_ESTART, "the Python of this process has no %s, so it is no CPython " PYTHON_VERSION, \
                    #name);
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
    status = look_up_functions(opened ? opened : RTLD_DEFAULT);
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
    ours = 1;
    return OPT_OK;
}

/* Return a number of threads that the environment names, as OpenMP and OpenBLAS read it; else `otherwise`. */
static int read_count(const char *const names[], int otherwise)
{
    for (; *names; names++) {
        const char *text = getenv(*names);
        long count = text ? strtol(text, NULL, 10) : 0;
        if (count > 0)
            return count < 10000 ? (int)count : 10000;
    }
    return otherwise;
}

/* The names that the code below begins with. */
struct fact {
    const char *name, *text;
};

/* clang-format off */
static const char import_bridge_code[] =
    "import os, sys, warnings\n"
    "python = sys.executable or ''\n"
    "usual = sys.getdlopenflags()\n"
    "added = bool(site) and site not in sys.path\n"
    "if added:\n"
    "    sys.path.append(site)\n"
    "error = trace = final = ''\n"
    "class Watch:\n"
    "    @staticmethod\n"
    "    def find_spec(name, *where):\n"
    "        note_import(name)\n"
    "try:\n"
    "    if ours:\n"
    "        sys.meta_path.insert(0, Watch)\n"
    "    if privileged:\n"
    "        os.environ = {}\n" /* as Python sees it: neither torch nor we then do what a caller wants */
    "    from optplug import surroundings\n"
    "    surroundings.check(int(threads), int(blas_threads))\n"
    "    if ours:\n"
    "        with warnings.catch_warnings():\n"
    "            warnings.simplefilter('ignore')\n"
    "            sys.setdlopenflags(usual | (getattr(os, 'RTLD_DEEPBIND', 0) if apart else 0))\n"
    "            surroundings.load_torch(bool(alone))\n"
    "    import optplug._bridge\n"
    "    if ours:\n"
    "        warnings.simplefilter('always')\n"
    "except BaseException as e:\n"
    "    import traceback\n"
    "    error = (str(e) or type(e).__name__).encode(errors='replace').decode()\n"
    "    trace = traceback.format_exc().encode(errors='replace').decode()\n"
    "    if 'torch' not in sys.modules and any(name.startswith('torch.') for name in sys.modules):\n"
    "        final = 'yes'\n"
    "    if added and site in sys.path:\n"
    "        sys.path.remove(site)\n"
    "finally:\n"
    "    if ours:\n"
    "        sys.meta_path.remove(Watch)\n"
    "    sys.setdlopenflags(usual)\n";
/* clang-format on */

static int set_facts(PyObject *names, const struct fact *facts)
{
    int done = py.PyDict_SetItemString_(names, "__builtins__", py.PyEval_GetBuiltins_()) == 0;
    for (; facts->name && done; facts++) {
        PyObject *text = py.PyUnicode_DecodeFSDefault_(facts->text);
        done = text && py.PyDict_SetItemString_(names, facts->name, text) == 0;
        py.Py_DecRef_(text);
    }
    return done;
}

/* Called with the name of each module before it is imported. */
static PyObject *note_import(PyObject *self, PyObject *name)
{
    (void)self;
    early_end_imports(py.PyUnicode_AsUTF8_(name));
    return py.PyDict_New_(); /* for want of None, which is no function */
}

static int set_note_import(PyObject *names)
{
    static PyMethodDef method = {"note_import", note_import, METH_O, NULL};
    PyObject *function = py.PyCFunction_NewEx_(&method, NULL, NULL);
    int done = function && py.PyDict_SetItemString_(names, "note_import", function) == 0;
    py.Py_DecRef_(function);
    return done;
}

static const char *get_text(PyObject *names, const char *name)
{
    PyObject *text = names ? py.PyDict_GetItemString_(names, name) : NULL;
    const char *utf8 = text ? py.PyUnicode_AsUTF8_(text) : NULL;
    return utf8 ? utf8 : "";
}

/* Import optplug._bridge, which attaches itself.  Call with the GIL. */
static int import_bridge(int processors)
{
    const char *const blas_names[] = {"OPENBLAS_NUM_THREADS", "GOTO_NUM_THREADS", "OMP_NUM_THREADS", NULL};
    const char *const openmp_names[] = {"MKL_NUM_THREADS", "OMP_NUM_THREADS", NULL};
    int hosts = openmp_threads(), blas = read_count(blas_names, processors);
    int torchs = hosts ? hosts : read_count(openmp_names, processors);
    int blas_wanted = (blas < processors ? blas : processors) - 1, wanted = blas_wanted + torchs - 1;
    int room = room_for_threads(wanted);
    char room_text[16], blas_text[16];
    snprintf(room_text, sizeof room_text, "%d", room);
    snprintf(blas_text, sizeof blas_text, "%d", blas_wanted);
    int apart = ours ? apart_decide() : 0;
    if (apart < 0)
        return apart;
    keeps_apart = apart;
    const struct fact facts[] = {{"site", environment.site},
                                 {"ours", ours ? "yes" : ""},
                                 {"apart", apart ? "yes" : ""},
                                 {"privileged", ours && find_is_privileged() ? "yes" : ""},
                                 {"threads", room_text},
                                 {"blas_threads", blas_text},
                                 {"alone", room < wanted ? "yes" : ""},
                                 {NULL, NULL}};

    double begun = log_seconds();
    PyObject *names = py.PyDict_New_();
    PyObject *done = names && set_facts(names, facts) && set_note_import(names)
                         ? py.PyRun_String_(import_bridge_code, Py_file_input, names, names)
                         : NULL;
    const char *error = done ? get_text(names, "error") : "out of memory";
    int status = !done ? OPT_ENOMEM : *error || !bridge ? OPT_ESTART : OPT_OK;
    if (status == OPT_OK)
        log_line(LOG_INFO, "imported PyTorch and optplug in %.2f s", log_seconds() - begun);
    if (names && !ours)
        snprintf(environment.python, sizeof environment.python, "%s", get_text(names, "python"));
    if (status != OPT_OK) {
        char message[1024];
        snprintf(message, sizeof message, "Python '%.300s' cannot import optplug: %s", environment.python,
                 *error ? error : "another liboptplug of this process has done so");
        error_record(status, message, get_text(names, "trace"));
        if (*get_text(names, "final"))
            keep_failure();
    }
    py.PyErr_Clear_();
    py.Py_DecRef_(done);
    py.Py_DecRef_(names);
    return status;
}

/* ---- fork ---- */

/* In a child the forking thread is alone, and what another thread had locked stays so.  Therefore it has
 * our locks and Python's when it forks, as far as they are to be had without waiting for a call to end;
 * what then is in another thread's hands is lost to the child, where it is an error. */
static _Thread_local struct {
    int starting; /* another thread starts Python: nothing is whole */
    int python;   /* we keep Python in order, whose own fork would do it itself */
    int cancel_state;
    PyGILState_STATE state;
} forking;

static void before_fork(void)
{
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &forking.cancel_state);
    struct host_state saved = {.error_number = errno};
    enter_arithmetic(&saved);
    pthread_mutex_lock(&load_lock);
    forking.starting = pthread_mutex_trylock(&start_lock) != 0;
    forking.python = !forking.starting && ours && started && !ended && !has_gil();
    if (forking.python) {
        forking.state = py.PyGILState_Ensure_();
        py.PyOS_BeforeFork_();
    }
    handle_before_fork();
    leave_arithmetic(&saved);
    errno = saved.error_number;
}

static void after_fork(int in_child)
{
    struct host_state saved = {.error_number = errno};
    enter_arithmetic(&saved);
    handle_after_fork(in_child);
    if (forking.python) {
        (in_child ? py.PyOS_AfterFork_Child_ : py.PyOS_AfterFork_Parent_)();
        py.PyGILState_Release_(forking.state);
    }
    if (in_child) {
        torn = forking.starting;
        forked = started;
        log_after_fork();
        pthread_mutex_init(&start_lock, NULL);
    } else if (!forking.starting)
        pthread_mutex_unlock(&start_lock);
    pthread_mutex_unlock(&load_lock);
    leave_arithmetic(&saved);
    errno = saved.error_number;
    pthread_setcancelstate(forking.cancel_state, NULL);
}

static void after_fork_in_parent(void) { after_fork(0); }

static void after_fork_in_child(void) { after_fork(1); }

static void watch_forks(void) { pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child); }

/* ---- the end ---- */

/* Runs before torch's own destructors, which no step of another thread must meet. */
static void end_all(void)
{
    ended = 1;
    handle_wait_for_all(2);
}

/* Where it comes while another thread starts Python. */
static void give_up(void) { ended = 1; }

static void keep_gil(void) { py.PyGILState_Ensure_(); }

/* Python takes the optimizers' state along, which no step without Python must meet either. */
static void end_python(void) { end_all(); }

/* ---- all of the start ---- */

/* Call with start_lock held and the GIL not. */
static int start_python(void)
{
    if (started)
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
    int status = import_bridge(affinity_count(&affinity));
    if (status == OPT_OK) {
        atexit(end_all);
        started = 1;
    }
    early_end_unwatch();
    if (fresh)
        py.PyEval_SaveThread_();
    else
        py.PyGILState_Release_(state);
    if (ours) /* Python takes SIGINT when torch imports its signal module, however it is configured */
        signals_restore(actions, some_function_of_pythons());
    affinity_restore(&affinity); /* torch's OpenMP narrows it where OMP_PROC_BIND or the like is set */
    return status;
}

static int check_choice(const char *python)
{
    char chosen[PATH_MAX];
    if (python && *python && strcmp(python, environment.python) != 0 &&
        !(find_interpreter(python, chosen) && strcmp(chosen, environment.python) == 0))
        return fail(OPT_ESTATE, "python='%.400s' comes too late: Python '%.400s' runs already", python,
                    environment.python);
    return host_running();
}

int host_start(const char *python)
{
    static pthread_once_t watching = PTHREAD_ONCE_INIT;
    if (started) {
        int status = callback_room();
        return status < 0 ? status : check_choice(python);
    }
    if (torn)
        return fail(OPT_ESTART,
                    "this process was forked while another thread started Python: fork before, or "
                    "after opt_init has returned");
    pthread_once(&watching, watch_forks);

    /* Twice, since the shield is whole only when OpenMP and Python's functions are found. */
    struct host_state outer, inner;
    host_enter(&outer);
    log_start();
    find_openmp(); /* the host's, whose thread count the import of torch would change */
    pthread_mutex_lock(&load_lock);
    double begun = log_seconds();
    int status = loaded ? OPT_OK : load_python(python);
    Dl_info info;
    if (!loaded && status == OPT_OK && dladdr((void *)(intptr_t)py.Py_IsInitialized_, &info))
        log_line(LOG_INFO, "found libpython '%.500s' in %.2f s", info.dli_fname, log_seconds() - begun);
    loaded = loaded || status == OPT_OK;
    pthread_mutex_unlock(&load_lock);
    if (status == OPT_OK) {
        host_enter(&inner);
        pthread_mutex_lock(&start_lock);
        status = start_python();
        pthread_mutex_unlock(&start_lock);
        host_leave(&inner);
        find_openmp(); /* torch's own, where the host had none */
    }
    host_leave(&outer);
    return status < 0 ? status : check_choice(python);
}

int host_running(void)
{
    if (started && !ended && py.Py_IsInitialized_())
        return OPT_OK;
    return started ? fail(OPT_ESTATE, "Python has ended in this process, and its optimizers with it")
                   : fail(OPT_ESTATE, "Python is not started: opt_init or opt_create does that");
}

const optplug_python *host_python(void) { return bridge; }

void host_clear_exception(void)
{
    PyGILState_STATE state = py.PyGILState_Ensure_();
    py.PyErr_Clear_();
    py.PyGILState_Release_(state);
}

int host_describe(char *text, size_t size)
{
    char libpython[PATH_MAX] = "not loaded yet";
    Dl_info info;
    if (loaded && dladdr((void *)(intptr_t)py.Py_IsInitialized_, &info))
        snprintf(libpython, sizeof libpython, "%s", info.dli_fname);
    struct environment library;
    find_library(&library);
    char torchs[2048] = "";
    if (started)
        apart_describe(torchs, sizeof torchs);
    const char *starter = ours ? "optplug" : "the host";
    snprintf(text, size, "optplug: %s\nlibrary: %s\nlibpython: %s\npython started by: %s\n%s",
             OPTPLUG_VERSION, library.library, libpython, started ? starter : "nobody yet", torchs);
    if (started && !ended && py.Py_IsInitialized_())
        return 1;
    size_t used = strlen(text);
    snprintf(text + used, size - used, "python: %s\n",
             environment.python[0] ? environment.python : "not chosen yet");
    return 0;
}

/* ---- the bridge ---- */

static int set_plan(int opt, const optplug_operator *operators, int count, int stable)
{
    struct slot *slot;
    if (handle_lock(opt, HANDLE_ASK, &slot) < 0)
        return 0;
    handle_set_plan(slot, count > 0 ? plan_new(operators, count, stable == 1 || (stable < 0 && !ours), !ours)
                                    : NULL);
    int planned = handle_plan(slot) != NULL;
    handle_unlock(slot);
    return planned;
}

static void set_plan_scalars(int opt, int which, const double *scalars)
{
    struct slot *slot;
    if (handle_lock(opt, HANDLE_ASK, &slot) < 0)
        return;
    if (handle_plan(slot))
        plan_set_scalars(handle_plan(slot), which, scalars);
    handle_unlock(slot);
}

static int64_t take_steps(int opt)
{
    struct slot *slot;
    if (handle_lock(opt, HANDLE_ASK, &slot) < 0)
        return 0;
    int64_t steps = handle_take_steps(slot);
    handle_unlock(slot);
    return steps;
}

static int log_wanted(void) { return log_level; }

static void tell(int level, const char *line) { log_line(level, "%s", line); }

static int change_log_level(int level)
{
    if (level >= 0)
        log_set_level(level);
    return log_function_level();
}

__attribute__((visibility("default"))) const optplug_host *optplug_attach(const optplug_python *python,
                                                                          const char *version)
{
    static const optplug_host host = {
        .record = error_record,
        .warn = warning_add,
        .text = text_set,
        .call = callback_run,
        .threads = set_threads,
        .thread_count = host_thread_count,
        .end = end_python,
        .interrupt = interrupt_host,
        .open_torch = plan_open_torch,
        .plan = set_plan,
        .plan_scalars = set_plan_scalars,
        .take_steps = take_steps,
        .log_wanted = log_wanted,
        .log = tell,
        .log_level = change_log_level,
    };
    if (strcmp(version, OPTPLUG_VERSION) != 0)
        return NULL;
    bridge = python;
    return &host;
}
