#include "loans.h"

#include "attributes.h"
#include "lying.h"
#include "pyapi.h"
#include "rows.h"

/* Write how many references of Python's a tensor has, and how many others own it and its memory; 0 if torch
 * does not say. */
static int count_owners(const optplug_loans *loans, Py_ssize_t i, int64_t counts[LOANS_COUNTS])
{
    PyObject *tensor = PyList_GET_ITEM((PyObject *)loans->lent, i);
    PyObject *memory = PyList_GET_ITEM((PyObject *)loans->memories, i);
    counts[0] = Py_REFCNT(tensor);
    PyObject *own = py.PyObject_CallFunctionObjArgs_(loans->use_count, tensor, NULL);
    PyObject *shared = own ? py.PyObject_CallFunctionObjArgs_(loans->owners, memory, NULL) : NULL;
    counts[1] = own ? py.PyLong_AsLong_(own) : -1;
    counts[2] = shared ? py.PyLong_AsLong_(shared) : -1;
    py.Py_DecRef_(own);
    py.Py_DecRef_(shared);
    return counts[1] >= 0 && counts[2] >= 0;
}

/* What the class has kept of the gradients before stays what it was. */
static int are_free(const optplug_loans *loans, int is_first)
{
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE((PyObject *)loans->lent); i++) {
        int64_t *before = loans->counts + i * LOANS_COUNTS, now[LOANS_COUNTS];
        if (!count_owners(loans, i, now))
            return 0;
        for (int j = 0; j < LOANS_COUNTS; j++) {
            if (is_first)
                before[j] = now[j];
            else if (before[j] != now[j])
                return 0;
        }
    }
    return 1;
}

int loans_lend(const optplug_loans *loans, int is_first)
{
    PyGILState_STATE gil = py.PyGILState_Ensure_();
    int is_done = are_free(loans, is_first) && attributes_are(&loans->hosts) &&
                  lying_look(loans->lying_lent, 0) == loans->lying_lent->count;
    if (is_done) {
        rows_copy(loans->from, loans->to);
        is_done = attributes_set(&loans->gradients);
        if (!is_done)
            attributes_set(&loans->hosts);
    }
    py.PyErr_Clear_();
    py.PyGILState_Release_(gil);
    return is_done;
}

int loans_take_back(const optplug_loans *loans)
{
    PyGILState_STATE gil = py.PyGILState_Ensure_();
    int is_done = lying_look(loans->lying, 0) == loans->lying->count && attributes_set(&loans->hosts);
    py.PyGILState_Release_(gil);
    return is_done;
}
