#include "holdings.h"

#include <stdlib.h>
#include <string.h>

#include "lying.h"
#include "pyapi.h"

/* Each note is written over the one before, and most of it is there already, but for numbers.  What is known of an
 * object stays with it where it comes into another place. */

/* An object that a walk has come to: in a table by its address, and where it is among all. */
struct seen {
    const void *object;
    int64_t walk, place;
};

/* Let an array have room for so many; 0 if there is no memory. */
static int reserve(void *array, int64_t count, size_t bytes)
{
    void *grown = realloc(*(void **)array, (size_t)count * bytes);
    if (grown)
        *(void **)array = grown;
    return grown != NULL;
}

/* Where an object is in the table, or comes into it. */
static struct seen *find(const optplug_holdings *h, const void *object)
{
    struct seen *table = h->seen;
    uint64_t place = ((uintptr_t)object >> 4) * UINT64_C(0x9E3779B97F4A7C15) >> 32;
    while (table[place &= (uint64_t)h->seen_size - 1].object && table[place].object != object)
        place++;
    return &table[place];
}

/* Make room for one object more, and of the table let only those be in it that there are. */
static int make_room(optplug_holdings *h)
{
    PyObject *objects = h->objects;
    int64_t count = PyList_GET_SIZE(objects);
    if (count < h->capacity && h->seen_count * 2 < h->seen_size)
        return 1;
    int64_t more = count < h->capacity ? h->capacity : h->capacity ? h->capacity * 2 : 64; /* a power of 2 */
    struct seen *table = calloc((size_t)more * 8, sizeof *table), *before = h->seen;
    if (!table || !reserve(&h->held, more, sizeof *h->held) ||
        !reserve(&h->marked, more, sizeof *h->marked)) {
        free(table);
        return 0;
    }
    optplug_holdings old = *h;
    h->seen = table, h->seen_size = more * 8, h->seen_count = count, h->capacity = more;
    for (int64_t i = 0; i < count; i++) {
        PyObject *object = PyList_GET_ITEM(objects, i);
        *find(h, object) = *find(&old, object);
    }
    free(before);
    return 1;
}

static int is_end(const optplug_holdings *h, PyObject *value)
{
    PyObject **ends = ((PyListObject *)h->ends)->ob_item;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE((PyObject *)h->ends); i++)
        if ((PyObject *)Py_TYPE(value) == ends[i])
            return 1;
    return 0;
}

/* Let a list have a value in this place, its last one or the one after.  What was there is let go of later: an
 * object's end may run code, which may change what is gone through.  -1 if there is no memory. */
static int keep(const optplug_holdings *h, void *list, Py_ssize_t place, PyObject *value)
{
    if (place == PyList_GET_SIZE((PyObject *)list))
        return py.PyList_Append_(list, value);
    PyObject *before = PyList_GET_ITEM((PyObject *)list, place);
    if (before == value)
        return 0;
    if (Py_REFCNT(before) == 1 && py.PyList_Append_(h->dropped, before) < 0)
        return -1;
    Py_INCREF(value);
    return py.PyList_SetItem_(list, place, value);
}

static int kind_of(const optplug_holdings *h, PyObject *value)
{
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE((PyObject *)h->types); i++)
        if ((PyObject *)Py_TYPE(value) == PyList_GET_ITEM((PyObject *)h->types, i))
            return h->kinds[i];
    return HELD_UNKNOWN;
}

/* Let two objects change places. */
static void exchange(optplug_holdings *h, int64_t i, int64_t k)
{
    PyObject **objects = ((PyListObject *)h->objects)->ob_item, **leads = ((PyListObject *)h->leads)->ob_item;
    PyObject *object = objects[i], *lead = leads[i];
    optplug_held held = h->held[i];
    objects[i] = objects[k], leads[i] = leads[k], h->held[i] = h->held[k];
    objects[k] = object, leads[k] = lead, h->held[k] = held;
    find(h, objects[i])->place = i;
    find(h, objects[k])->place = k;
}

/* Come to an object that leads on, to go on from there later; 0 if there is no memory. */
static int come_to(optplug_holdings *h, PyObject *value)
{
    if (!make_room(h))
        return 0;
    struct seen *seen = find(h, value);
    PyObject *objects = h->objects;
    int64_t i = h->count, k = seen->object ? seen->place : -1, last = PyList_GET_SIZE(objects);
    if (seen->object && seen->walk == h->walk)
        return 1;
    if (k < 0 || k >= last || PyList_GET_ITEM(objects, k) != value) { /* or another one had its address */
        if (py.PyList_Append_(objects, value) < 0 || py.PyList_Append_(h->leads, h->none) < 0)
            return 0;
        h->held[last] = (optplug_held){.kind = kind_of(h, value)};
        h->seen_count += !seen->object;
        *seen = (struct seen){value, h->walk, last};
        k = last;
    }
    seen->walk = h->walk;
    h->count++;
    if (k != i)
        exchange(h, i, k);
    return 1;
}

static int visit(optplug_holdings *h, PyObject *value) { return is_end(h, value) || come_to(h, value); }

/* ---- what containers hold ---- */

static int note_value(optplug_holdings *h, int64_t i, PyObject *value)
{
    Py_ssize_t place = h->value_count++, known = PyList_GET_SIZE((PyObject *)h->values);
    h->held[i].length++;
    if (place >= known || PyList_GET_ITEM((PyObject *)h->values, place) != value) {
        if (place >= h->value_capacity) {
            int64_t more = place * 2 + 64;
            if (!reserve(&h->are_ends, more, 1))
                return 0;
            h->value_capacity = more;
        }
        if (keep(h, h->values, place, value) < 0)
            return 0;
        h->are_ends[place] = (char)is_end(h, value);
    }
    return h->are_ends[place] || come_to(h, value);
}

static int note_key(optplug_holdings *h, PyObject *key)
{
    if (keep(h, h->keys, h->key_count++, key) < 0)
        return 0;
    return PyUnicode_Check(key) || is_end(h, key) || !py.PyType_IsSubtype_(Py_TYPE(key), h->tensor) ||
           visit(h, key);
}

static int go_through_dict(optplug_holdings *h, int64_t i, PyObject *dict)
{
    PyObject *key, *value;
    for (Py_ssize_t at = 0; py.PyDict_Next_(dict, &at, &key, &value);)
        if (!note_key(h, key) || !note_value(h, i, value))
            return 0;
    return 1;
}

static int go_through_list(optplug_holdings *h, int64_t i, PyObject *list)
{
    for (Py_ssize_t k = 0; k < PyList_GET_SIZE(list); k++)
        if (!note_value(h, i, PyList_GET_ITEM(list, k)))
            return 0;
    return 1;
}

static int go_through_tuple(optplug_holdings *h, PyObject *tuple)
{
    for (Py_ssize_t k = 0; k < PyTuple_GET_SIZE(tuple); k++)
        if (!visit(h, PyTuple_GET_ITEM(tuple, k)))
            return 0;
    return 1;
}

/* Of a set or a deque of Python's own. */
static int go_through_iterable(optplug_holdings *h, int64_t i, PyObject *iterable)
{
    PyObject *iterator = py.PyObject_GetIter_(iterable), *value = NULL;
    int is_done = iterator != NULL;
    while (is_done && (value = py.PyIter_Next_(iterator))) {
        is_done = note_value(h, i, value);
        py.Py_DecRef_(value);
    }
    py.Py_DecRef_(iterator);
    return is_done;
}

/* Of what Python reads: a list of the values, of a dict with its key before each. */
static int go_through_read(optplug_holdings *h, int64_t i, PyObject *container)
{
    PyObject *read = py.PyObject_CallFunctionObjArgs_(h->read, container, NULL);
    int is_done = read != NULL, is_dict = h->held[i].kind == HELD_DICT_READ;
    for (Py_ssize_t k = 0; is_done && k < PyList_GET_SIZE(read); k++) {
        is_done = !is_dict || note_key(h, PyList_GET_ITEM(read, k++));
        is_done = is_done && note_value(h, i, PyList_GET_ITEM(read, k));
    }
    py.Py_DecRef_(read);
    return is_done;
}

/* ---- tensors ---- */

/* Return an attribute that some tensors do not tell, as views that autograd has given up; NULL then. */
static PyObject *attribute(PyObject *tensor, void *name)
{
    PyObject *value = py.PyObject_GetAttr_(tensor, name);
    if (!value)
        py.PyErr_Clear_();
    return value;
}

static int is_true(const optplug_holdings *h, PyObject *tensor, void *name)
{
    PyObject *value = attribute(tensor, name);
    py.Py_DecRef_(value); /* there is one True */
    return value ? value == h->yes : -1;
}

/* Note where a tensor lies, and what is its memory, whatever a step makes of it. */
static int note_memory(optplug_holdings *h, int64_t i, PyObject *tensor)
{
    optplug_held *held = &h->held[i];
    int64_t numbers[LYING_NUMBERS] = {0};
    void *place = NULL;
    PyObject *before = PyList_GET_ITEM((PyObject *)h->leads, i);
    int is_told = lying_tell(h->functions, tensor, numbers, &place), is_kept = 0;
    if (!is_told) {
        is_kept = keep(h, h->leads, i, h->none) == 0;
    } else if (before != h->none && held->place == place && !memcmp(held->numbers, numbers, sizeof numbers)) {
        is_kept = 1;
    } else {
        PyObject *memory = py.PyObject_GetAttr_(tensor, h->data_name);
        is_kept = memory && keep(h, h->leads, i, memory) == 0;
        py.Py_DecRef_(memory);
        held->place = place;
        memcpy(held->numbers, numbers, sizeof numbers);
    }
    int is_simple = (void *)Py_TYPE(tensor) == h->tensor || (void *)Py_TYPE(tensor) == h->parameter;
    held->span = is_told && is_simple ? lying_span(numbers) : -1;
    if (held->span < 0 || held->span > HELD_MOST_BYTES) {
        held->span = -1;
        h->marked[h->marked_count++] = i;
    }
    return is_kept;
}

static int note_tensor(optplug_holdings *h, int64_t i, PyObject *tensor)
{
    PyObject *attributes = py.PyObject_GenericGetDict_(tensor, NULL);
    int is_done = attributes && (PyDict_GET_SIZE(attributes) == 0 || visit(h, attributes));
    py.Py_DecRef_(attributes);
    int wants = is_true(h, tensor, h->requires_grad_name), is_own = i > h->parameter_count;
    h->held[i].wants = is_own && wants != 0 && is_true(h, tensor, h->is_leaf_name) != 1 ? -1 : wants;
    if (is_done && is_own && h->held[i].wants >= 0) {
        PyObject *grad = attribute(tensor, h->grad_name);
        is_done = !grad || note_value(h, i, grad);
        py.Py_DecRef_(grad);
    }
    return is_done && note_memory(h, i, tensor);
}

/* ---- everything ---- */

/* Let Python say what an object is, and what it leads to besides what can be seen here. */
static int ask(optplug_holdings *h, int64_t i, PyObject *object)
{
    PyObject *said = py.PyObject_CallFunctionObjArgs_(h->tell, object, NULL);
    int is_done = said && keep(h, h->leads, i, PyTuple_GET_ITEM(said, 1)) == 0;
    if (is_done)
        h->held[i].kind = (int)py.PyLong_AsLong_(PyTuple_GET_ITEM(said, 0));
    py.Py_DecRef_(said);
    return is_done;
}

/* Tell whether what Python has said of an object holds: its class and its dict, which come first, may be others;
 * and an array of objects may have others. */
static int is_as_said(const optplug_holdings *h, int64_t i, PyObject *object)
{
    PyObject *leads = PyList_GET_ITEM((PyObject *)h->leads, i);
    int kind = h->held[i].kind;
    if (kind == HELD_UNKNOWN || (kind == HELD_THING && leads != h->none))
        return 0;
    if ((kind != HELD_OBJECT && kind != HELD_DICT_READ) || leads == h->none)
        return 1;
    PyObject *attributes = attribute(object, h->dict_name);
    py.Py_DecRef_(attributes);
    return PyList_GET_ITEM(leads, 0) == (PyObject *)Py_TYPE(object) &&
           PyList_GET_ITEM(leads, 1) == attributes;
}

static int go_through(optplug_holdings *h, int64_t i, PyObject *object)
{
    switch (h->held[i].kind) {
    case HELD_DICT:
        return go_through_dict(h, i, object);
    case HELD_LIST:
        return go_through_list(h, i, object);
    case HELD_TUPLE:
        return go_through_tuple(h, object);
    case HELD_ITERABLE:
        return go_through_iterable(h, i, object);
    case HELD_CELL:
        return note_value(h, i, PyCell_GET(object) ? PyCell_GET(object) : h->nothing);
    case HELD_DICT_READ: /* which may have an order of its own */
        if (PyDict_GET_SIZE(object) < 2)
            return go_through_dict(h, i, object);
        return go_through_read(h, i, object);
    case HELD_READ:
        return go_through_read(h, i, object);
    case HELD_TENSOR:
        return note_tensor(h, i, object);
    case HELD_THING:
        h->marked[h->marked_count++] = i;
    }
    return 1;
}

static int go_on_from(optplug_holdings *h, int64_t i)
{
    PyObject *object = PyList_GET_ITEM((PyObject *)h->objects, i);
    h->held[i].length = h->held[i].span = 0;
    if (!is_as_said(h, i, object) && !ask(h, i, object))
        return 0;
    PyObject *leads = PyList_GET_ITEM((PyObject *)h->leads, i);
    if (leads != h->none && h->held[i].kind != HELD_TENSOR)
        for (Py_ssize_t k = 0; k < PyList_GET_SIZE(leads); k++)
            if (!visit(h, PyList_GET_ITEM(leads, k)))
                return 0;
    return go_through(h, i, object);
}

/* Copy the values of the short tensors. */
static int take(optplug_holdings *h)
{
    int64_t size = 0;
    for (int64_t i = 0; i < h->count; i++)
        size += h->held[i].span > 0 ? h->held[i].span : 0;
    if (size > h->row_size) {
        if (!reserve(&h->row, size, 1))
            return 0;
        h->row_size = size;
    }
    char *to = h->row;
    for (int64_t i = 0; i < h->count; i++)
        if (h->held[i].span > 0) {
            memcpy(to, h->held[i].place, (size_t)h->held[i].span);
            to += h->held[i].span;
        }
    return 1;
}

static void shorten(void *list, Py_ssize_t count)
{
    if (count < PyList_GET_SIZE((PyObject *)list))
        py.PyList_SetSlice_(list, count, PyList_GET_SIZE((PyObject *)list), NULL);
}

/* Leave what Python has raised to be raised by it again. */
static void hand_over_exception(const optplug_holdings *h)
{
    PyObject *type, *value, *trace;
    py.PyErr_Fetch_(&type, &value, &trace);
    if (!type)
        return;
    py.PyErr_NormalizeException_(&type, &value, &trace);
    if (py.PyList_Append_(h->raised, value) < 0)
        py.PyErr_Clear_();
    py.Py_DecRef_(type);
    py.Py_DecRef_(value);
    py.Py_DecRef_(trace);
}

int64_t holdings_note(optplug_holdings *h, int takes)
{
    PyGILState_STATE gil = py.PyGILState_Ensure_();
    h->walk++;
    h->functions = lying_functions(h->exchange);
    h->count = h->key_count = h->value_count = h->marked_count = 0;
    int is_done = 1;
    for (Py_ssize_t i = 0; is_done && i < PyList_GET_SIZE((PyObject *)h->roots); i++)
        is_done = visit(h, PyList_GET_ITEM((PyObject *)h->roots, i));
    for (int64_t i = 0; is_done && i < h->count; i++)
        is_done = go_on_from(h, i);
    is_done = is_done && (!takes || take(h));
    if (!is_done)
        hand_over_exception(h);
    shorten(h->objects, h->count);
    shorten(h->leads, h->count);
    shorten(h->keys, h->key_count);
    shorten(h->values, h->value_count);
    shorten(h->dropped, 0);
    py.PyGILState_Release_(gil);
    return is_done ? h->marked_count : -1;
}

void holdings_forget(optplug_holdings *h)
{
    free(h->seen);
    free(h->held);
    free(h->marked);
    free(h->row);
    free(h->are_ends);
}
