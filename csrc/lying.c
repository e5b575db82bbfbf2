#include "lying.h"

#include <string.h>

#include "pyapi.h"

/* What DLPack says of a tensor: https://dmlc.github.io/dlpack/latest/c_api.html */
struct tensor {
    void *data;
    int32_t device_type, device;
    int32_t dimensions;
    struct {
        uint8_t code, bits;
        uint16_t lanes;
    } dtype;
    int64_t *shape, *strides;
    uint64_t offset;
};

/* Its functions: the fourth says that of a Python object. */
struct exchange {
    uint32_t major, minor;
    const struct exchange *older;
    void (*others[3])(void);
    int (*tell)(void *object, struct tensor *tensor);
};

/* Write which tensor it is and what is said of it, but for its address; 0 if that is too much. */
static int describe(int64_t *numbers, PyObject *object, const struct tensor *t)
{
    if (t->dimensions > LYING_DIMENSIONS)
        return 0;
    *numbers++ = (int64_t)(intptr_t)object;
    *numbers++ = (int64_t)t->device_type << 32 | t->device;
    *numbers++ = (int64_t)t->dtype.code << 24 | t->dtype.bits << 16 | t->dtype.lanes;
    *numbers++ = t->dimensions;
    for (int i = 0; i < t->dimensions; i++) {
        *numbers++ = t->shape[i];
        *numbers++ = t->strides ? t->strides[i] : 0; /* DLPack allows none */
    }
    return 1;
}

int lying_look(const optplug_lying *lying, int is_first)
{
    PyGILState_STATE gil = py.PyGILState_Ensure_();
    const struct exchange *exchange = py.PyCapsule_GetPointer_(lying->exchange, "dlpack_exchange_api");
    int i = 0, is_known = exchange && exchange->major == 1 && exchange->tell;
    for (; is_known && i < lying->count; i++) {
        struct tensor t;
        int64_t *before = lying->numbers + (int64_t)i * LYING_NUMBERS, now[LYING_NUMBERS] = {0};
        PyObject *object = PyList_GET_ITEM((PyObject *)lying->tensors, i);
        if (exchange->tell(object, &t) != 0 || !describe(now, object, &t))
            break;
        void *place = (char *)t.data + t.offset;
        if (!is_first && memcmp(before + 1, now + 1, sizeof now - sizeof *now) != 0)
            break;
        if (!is_first && before[0] == now[0] && lying->places[i] != place)
            break;
        memcpy(before, now, sizeof now);
        lying->places[i] = place;
    }
    py.PyErr_Clear_();
    py.PyGILState_Release_(gil);
    return i;
}
