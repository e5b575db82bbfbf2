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

enum { CPU = 1 }; /* kDLCPU */

/* Its functions: the fourth says that of a Python object. */
struct exchange {
    uint32_t major, minor;
    const struct exchange *older;
    void (*others[3])(void);
    int (*tell)(void *object, struct tensor *tensor);
};

/* Write which tensor it is and what is said of it, but for its address; 0 if that is too much. */
static int describe(int64_t *numbers, const void *object, const struct tensor *t)
{
    if (t->dimensions > LYING_DIMENSIONS)
        return 0;
    memset(numbers, 0, LYING_NUMBERS * sizeof *numbers);
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

const void *lying_functions(void *exchange)
{
    const struct exchange *functions = py.PyCapsule_GetPointer_(exchange, "dlpack_exchange_api");
    py.PyErr_Clear_();
    return functions && functions->major == 1 && functions->tell ? functions : NULL;
}

int lying_tell(const void *functions, void *tensor, int64_t numbers[LYING_NUMBERS], void **place)
{
    struct tensor t;
    if (!functions)
        return 0;
    if (((const struct exchange *)functions)->tell(tensor, &t) != 0) {
        py.PyErr_Clear_();
        return 0;
    }
    *place = (char *)t.data + t.offset;
    return describe(numbers, tensor, &t);
}

int64_t lying_span(const int64_t numbers[LYING_NUMBERS])
{
    int64_t last = 0, bits = numbers[2] >> 16 & 0xFF;
    for (int i = 0; i < numbers[3]; i++) {
        if (numbers[4 + 2 * i] == 0)
            return 0;
        last += (numbers[4 + 2 * i] - 1) * numbers[5 + 2 * i];
    }
    return numbers[1] >> 32 == CPU ? (1 + last) * (bits / 8) : -1;
}

int lying_look(const optplug_lying *lying, int is_first)
{
    PyGILState_STATE gil = py.PyGILState_Ensure_();
    const void *functions = lying_functions(lying->exchange);
    int i = 0;
    for (; i < lying->count; i++) {
        int64_t *before = lying->numbers + (int64_t)i * LYING_NUMBERS, now[LYING_NUMBERS];
        void *place;
        if (!lying_tell(functions, PyList_GET_ITEM((PyObject *)lying->tensors, i), now, &place))
            break;
        if (!is_first && memcmp(before + 1, now + 1, sizeof now - sizeof *now) != 0)
            break;
        if (!is_first && before[0] == now[0] && lying->places[i] != place)
            break;
        memcpy(before, now, sizeof now);
        lying->places[i] = place;
    }
    py.PyGILState_Release_(gil);
    return i;
}
