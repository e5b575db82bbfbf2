/* Python's functions, found with dlsym; its headers give only types.  So liboptplug links no libpython: a
 * host that is a Python has one already, maybe inside its own executable. */
#ifndef OPTPLUG_PYAPI_H
#define OPTPLUG_PYAPI_H

#include <Python.h>

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
    F(PyDict_Next)                                                                                           \
    F(PyList_SetItem)                                                                                        \
    F(PyList_Append)                                                                                         \
    F(PyList_SetSlice)                                                                                       \
    F(PyLong_AsLong)                                                                                         \
    F(PyObject_GetAttr)                                                                                      \
    F(PyObject_SetAttr)                                                                                      \
    F(PyObject_GetIter)                                                                                      \
    F(PyObject_GenericGetDict)                                                                               \
    F(PyType_IsSubtype)                                                                                      \
    F(PyIter_Next)                                                                                           \
    F(PyObject_CallFunctionObjArgs)                                                                          \
    F(PyCapsule_GetPointer)                                                                                  \
    F(PyUnicode_DecodeFSDefault)                                                                             \
    F(PyUnicode_AsUTF8)                                                                                      \
    F(PyCFunction_NewEx)                                                                                     \
    F(PyRun_String)                                                                                          \
    F(PyErr_Clear)                                                                                           \
    F(PyErr_Fetch)                                                                                           \
    F(PyErr_NormalizeException)                                                                              \
    F(PyOS_BeforeFork)                                                                                       \
    F(PyOS_AfterFork_Parent)                                                                                 \
    F(PyOS_AfterFork_Child)                                                                                  \
    F(Py_DecRef)

#define PYTHON_FUNCTION(name) __typeof__(name) *name##_;
extern struct pyapi {
    PYTHON_FUNCTIONS(PYTHON_FUNCTION)
} py;
#undef PYTHON_FUNCTION

/* Fill in `py` from a library, or with RTLD_DEFAULT from the process.  Fails where that is another version of
 * Python than the one for which this liboptplug, named for the message, was built. */
int pyapi_find(void *library, const char *liboptplug);

/* Say that `py` may be used from now on, and tell whether it may. */
void pyapi_publish(void);
int pyapi_is_published(void);

/* Tell whether Python runs. */
int pyapi_runs(void);

/* Return what Python has of this thread; NULL for nothing. */
PyThreadState *pyapi_thread_state(void);

/* Tell whether this thread holds the GIL. */
int pyapi_has_gil(void);

/* Clear an exception that torch's C functions have left in this thread. */
void pyapi_clear_exception(void);

/* Return the address of a function of Python's, by which its signal handlers are known. */
const void *pyapi_address(void);

#endif
