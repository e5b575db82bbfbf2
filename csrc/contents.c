#include "contents.h"

#include "attributes.h"
#include "lying.h"
#include "pyapi.h"
#include "rows.h"

/* Where the comparison is. */
struct comparison {
    const optplug_contents *noted;
    PyObject *keys, *values;          /* lists */
    Py_ssize_t container, key, value; /* how many are compared */
    int64_t others;                   /* values that are others, and whose places are noted */
};

/* Let a list that has come into the place of another be the one that is compared; 0 if somebody else has the
 * other still, as another place that it was in. */
static int exchange(struct comparison *c, PyObject *list, int64_t place)
{
    PyObject *containers = c->noted->containers;
    if (Py_REFCNT(PyList_GET_ITEM(containers, place)) > 1)
        return 0;
    Py_INCREF(list);
    py.PyList_SetItem_(containers, place, list);
    return 1;
}

/* Compare a value with the one that was in its place, and note it; 0 if it is of another type. */
static int compare(struct comparison *c, PyObject *value)
{
    PyObject *before = PyList_GET_ITEM(c->values, c->value);
    if (value != before) {
        if (Py_TYPE(value) != Py_TYPE(before))
            return 0;
        int64_t place = c->noted->places[c->value * CONTENTS_PLACES + AMONG_CONTAINERS];
        if (c->noted->leads_on[c->value] && place < 0)
            c->noted->others[c->others++] = c->value;
        Py_INCREF(value);
        py.PyList_SetItem_(c->values, c->value, value);
        if (place >= 0 && !exchange(c, value, place))
            return 0;
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

/* The same of a set or a deque. */
static int compare_iterable(struct comparison *c, PyObject *iterable)
{
    PyObject *iterator = py.PyObject_GetIter_(iterable), *value = NULL;
    int is_alike = iterator != NULL;
    while (is_alike && (value = py.PyIter_Next_(iterator))) {
        is_alike = compare(c, value);
        py.Py_DecRef_(value);
    }
    py.Py_DecRef_(iterator);
    return is_alike;
}

static int compare_container(struct comparison *c, PyObject *container)
{
    int64_t length = c->noted->lengths[c->container];
    if (PyDict_Check(container))
        return PyDict_GET_SIZE(container) == length && compare_dict(c, container);
    if (PyList_Check(container))
        return PyList_GET_SIZE(container) == length && compare_list(c, container);
    return py.PyObject_Size_(container) == length && (length == 0 || compare_iterable(c, container));
}

/* Let a tensor be the one that has come into the place of another; 0 if somebody else has that still. */
static int replace(const optplug_contents *noted, int64_t value)
{
    const int64_t *places = noted->places + value * CONTENTS_PLACES;
    if (places[AMONG_TENSORS] < 0)
        return 0;
    PyObject *tensors = noted->tensors->tensors, *now = PyList_GET_ITEM((PyObject *)noted->values, value);
    if (PyList_GET_ITEM(tensors, places[AMONG_TENSORS]) == now) /* it has come into another place, too */
        return 1;
    if (Py_REFCNT(PyList_GET_ITEM(tensors, places[AMONG_TENSORS])) > 2) /* besides this list and `own` */
        return 0;
    PyObject *attributes = py.PyObject_GetAttr_(now, noted->attributes_of);
    PyObject *memory = py.PyObject_GetAttr_(now, noted->memory_of);
    int is_like = attributes && memory && PyDict_Check(attributes) && PyDict_GET_SIZE(attributes) == 0;
    if (is_like) {
        Py_INCREF(now);
        Py_INCREF(now);
        py.PyList_SetItem_(tensors, places[AMONG_TENSORS], now);
        py.PyList_SetItem_(noted->own, places[AMONG_OWN], now);
        py.PyList_SetItem_(noted->bare, places[AMONG_BARE], attributes);
        py.PyList_SetItem_(noted->memory, places[AMONG_TENSORS], memory);
    } else {
        py.PyErr_Clear_();
        py.Py_DecRef_(attributes);
        py.Py_DecRef_(memory);
    }
    return is_like;
}

/* While containers are gone through, nothing runs code of Python's: what is let go of is a number, a list whose
 * values are noted, or is kept by whoever asks. */
int64_t contents_note(const optplug_contents *noted)
{
    struct comparison c = {.noted = noted, .keys = noted->keys, .values = noted->values};
    PyGILState_STATE gil = py.PyGILState_Ensure_();
    PyObject *containers = noted->containers;
    int is_alike = 1;
    for (; is_alike && c.container < PyList_GET_SIZE(containers); c.container++)
        is_alike = compare_container(&c, PyList_GET_ITEM(containers, c.container));
    PyObject *bare = noted->bare;
    for (Py_ssize_t i = 0; is_alike && i < PyList_GET_SIZE(bare); i++)
        is_alike = PyDict_GET_SIZE(PyList_GET_ITEM(bare, i)) == 0;
    for (int64_t i = 0; is_alike && i < c.others; i++)
        is_alike = replace(noted, noted->others[i]);
    for (int i = 0; is_alike && i < noted->attribute_count; i++)
        is_alike = attributes_are(&noted->attributes[i]);
    if (is_alike)
        is_alike = lying_look(noted->tensors, 0) == noted->tensors->count;
    if (is_alike && noted->parts)
        rows_take(noted->parts, noted->row);
    py.PyErr_Clear_();
    py.PyGILState_Release_(gil);
    return is_alike ? c.others : -1;
}
