#include "contents.h"

#include "lying.h"
#include "pyapi.h"
#include "rows.h"

/* Where the comparison is. */
struct comparison {
    const optplug_contents *noted;
    PyObject *keys, *values; /* lists */
    Py_ssize_t key, value;   /* how many are compared */
    int64_t others;          /* values that are others, and whose places are noted */
};

/* Compare a value with the one that was in its place, and note it; 0 if it is of another type. */
static int compare(struct comparison *c, PyObject *value)
{
    PyObject *before = PyList_GET_ITEM(c->values, c->value);
    if (value != before) {
        if (Py_TYPE(value) != Py_TYPE(before))
            return 0;
        if (c->noted->leads_on[c->value])
            c->noted->others[c->others++] = c->value;
        Py_INCREF(value);
        py.PyList_SetItem_(c->values, c->value, value);
    }
    c->value++;
    return 1;
}

static int compare_dict(struct comparison *c, PyObject *dict)
{
    PyObject *key, *value;
    for (Py_ssize_t at = 0; py.PyDict_Next_(dict, &at, &key, &value);)
        if (key != PyList_GET_ITEM(c->keys, c->key++) || !compare(c, value))
            return 0;
    return 1;
}

static int compare_list(struct comparison *c, PyObject *list)
{
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(list); i++)
        if (!compare(c, PyList_GET_ITEM(list, i)))
            return 0;
    return 1;
}

/* Nothing here runs code of Python's: what is let go of is a number, or is kept by whoever asks. */
int64_t contents_note(const optplug_contents *noted)
{
    struct comparison c = {.noted = noted, .keys = noted->keys, .values = noted->values};
    PyGILState_STATE gil = py.PyGILState_Ensure_();
    int is_alike = 1;
    for (int i = 0; is_alike && i < noted->count; i++) {
        PyObject *container = noted->containers[i];
        if (PyDict_Check(container))
            is_alike = PyDict_GET_SIZE(container) == noted->lengths[i] && compare_dict(&c, container);
        else
            is_alike = PyList_GET_SIZE(container) == noted->lengths[i] && compare_list(&c, container);
    }
    PyObject *bare = noted->bare;
    for (Py_ssize_t i = 0; is_alike && i < PyList_GET_SIZE(bare); i++)
        is_alike = PyDict_GET_SIZE(PyList_GET_ITEM(bare, i)) == 0;
    if (is_alike && !c.others) {
        is_alike = lying_look(noted->tensors, 0) == noted->tensors->count;
        if (is_alike && noted->parts)
            rows_take(noted->parts, noted->row);
    }
    py.PyGILState_Release_(gil);
    return is_alike ? c.others : -1;
}
