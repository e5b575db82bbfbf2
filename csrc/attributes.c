#include "attributes.h"

#include "pyapi.h"

int attributes_are(const optplug_attributes *attributes)
{
    PyObject *objects = attributes->objects, *values = attributes->values;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(objects); i++) {
        PyObject *now = py.PyObject_GetAttr_(PyList_GET_ITEM(objects, i), attributes->name);
        if (now != PyList_GET_ITEM(values, i)) {
            py.Py_DecRef_(now);
            py.PyErr_Clear_();
            return 0;
        }
        py.Py_DecRef_(now);
    }
    return 1;
}

int attributes_set(const optplug_attributes *attributes)
{
    PyObject *objects = attributes->objects, *values = attributes->values;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(objects); i++)
        if (py.PyObject_SetAttr_(PyList_GET_ITEM(objects, i), attributes->name, PyList_GET_ITEM(values, i)) <
            0) {
            py.PyErr_Clear_();
            return 0;
        }
    return 1;
}
