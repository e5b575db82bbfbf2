#include "import.h"

#include <stdio.h>
#include <stdlib.h>

#include "apart.h"
#include "early_end.h"
#include "error.h"
#include "find.h"
#include "log.h"
#include "openmp.h"
#include "optplug.h"
#include "pyapi.h"
#include "room.h"
#include "runtime.h"
#include "variable.h"

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
    "import gc, os, sys, warnings\n"
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
    "        gc.disable()\n" /* which would look at every object again and again, of which none is garbage */
    "        sys.meta_path.insert(0, Watch)\n"
    "    if privileged:\n"
    "        os.environ = {}\n" /* as Python sees it: neither torch nor we then do what a caller wants */
    "    from optplug import surroundings\n"
    "    surroundings.check(int(threads), int(blas_threads))\n"
    "    if ours:\n"
    "        with warnings.catch_warnings():\n"
    "            warnings.simplefilter('ignore')\n"
    "            sys.setdlopenflags(usual | (getattr(os, 'RTLD_DEEPBIND', 0) if apart else 0))\n"
    "            surroundings.load_torch(bool(alone), libtorch)\n"
    "    try:\n"
    "        import optplug._bridge\n"
    "    except BaseException as e:\n"
    "        raise surroundings.misfit(e)\n"
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
    "        gc.freeze()\n"
    "        gc.enable()\n"
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

int import_bridge(struct environment *environment, int processors, int *is_final)
{
    *is_final = 0;
    const char *const blas_names[] = {"OPENBLAS_NUM_THREADS", "GOTO_NUM_THREADS", "OMP_NUM_THREADS", NULL};
    const char *const openmp_names[] = {"MKL_NUM_THREADS", "OMP_NUM_THREADS", NULL};
    int hosts = openmp_threads(), blas = read_count(blas_names, processors);
    int torchs = hosts ? hosts : read_count(openmp_names, processors);
    int blas_wanted = (blas < processors ? blas : processors) - 1, wanted = blas_wanted + torchs - 1;
    int room = room_for_threads(wanted);
    char room_text[16], blas_text[16];
    snprintf(room_text, sizeof room_text, "%d", room);
    snprintf(blas_text, sizeof blas_text, "%d", blas_wanted);
    int apart = runtime.ours ? apart_decide() : 0;
    if (apart < 0)
        return apart;
    runtime.keeps_apart = apart;
    const struct fact facts[] = {{"site", environment->site},
                                 {"ours", runtime.ours ? "yes" : ""},
                                 {"apart", apart ? "yes" : ""},
                                 {"privileged", runtime.ours && variable_is_distrusted() ? "yes" : ""},
                                 {"threads", room_text},
                                 {"blas_threads", blas_text},
                                 {"alone", room < wanted ? "yes" : ""},
                                 {"libtorch", apart_libtorch()},
                                 {NULL, NULL}};

    double begun = log_seconds();
    PyObject *names = py.PyDict_New_();
    PyObject *done = names && set_facts(names, facts) && set_note_import(names)
                         ? py.PyRun_String_(import_bridge_code, Py_file_input, names, names)
                         : NULL;
    const char *error = done ? get_text(names, "error") : "out of memory";
    int status = !done ? OPT_ENOMEM : *error || !runtime.python ? OPT_ESTART : OPT_OK;
    if (status == OPT_OK)
        log_line(LOG_INFO, "imported PyTorch and optplug in %.2f s", log_seconds() - begun);
    if (names && !runtime.ours)
        snprintf(environment->python, sizeof environment->python, "%s", get_text(names, "python"));
    if (status != OPT_OK) {
        char message[1024];
        snprintf(message, sizeof message, "Python '%.300s' cannot import optplug: %s", environment->python,
                 *error ? error : "another copy of liboptplug is already attached");
        error_record(status, message, get_text(names, "trace"));
        *is_final = *get_text(names, "final") != '\0';
    }
    py.PyErr_Clear_();
    py.Py_DecRef_(done);
    py.Py_DecRef_(names);
    return status;
}
