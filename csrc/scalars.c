#include "scalars.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "half.h"

int scalars_make(struct scalars *scalars, const optplug_record *given)
{
    const size_t count = (size_t)given->scalar_count, guard_count = 2 * (size_t)given->guard_count;
    scalars->count = given->scalar_count;
    scalars->guard_count = given->guard_count;
    scalars->each = calloc(count + 1, sizeof *scalars->each);
    scalars->guards = calloc(guard_count + 1, sizeof *scalars->guards);
    scalars->operations = calloc(count + 1, sizeof *scalars->operations);
    if (!scalars->each || !scalars->guards || !scalars->operations)
        return 0;
    for (int i = 0; i < given->scalar_count; i++) {
        const optplug_scalar *scalar = &given->scalars[i];
        scalars->each[i] = *scalar;
        if (scalar->kind != SCALAR_ELEMENTWISE)
            continue;
        scalars->operations[i] = elementwise_find(scalar->elementwise, worked_in(scalar->b));
        if (!scalars->operations[i])
            return 0;
    }
    if (guard_count > 0)
        memcpy(scalars->guards, given->guards, guard_count * sizeof *scalars->guards);
    return 1;
}

void scalars_free(struct scalars *scalars)
{
    free(scalars->each);
    free(scalars->guards);
    free(scalars->operations);
}

static double item(const struct lists *lists, int list, int index)
{
    const void *data = lists_tensor(lists, list, index)->data;
    switch ((optplug_format)lists->formats[list]) {
    case FORMAT_INT64:
        return (double)*(const int64_t *)data;
    case FORMAT_FLOAT64:
        return *(const double *)data;
    case FORMAT_FLOAT32:
        return *(const float *)data;
    case FORMAT_FLOAT16:
        return widen_float16(*(const uint16_t *)data);
    case FORMAT_BFLOAT16:
        return widen_bfloat16(*(const uint16_t *)data);
    }
    return 0;
}

void scalars_store(const struct lists *lists, int list, int index, double value)
{
    void *data = lists_tensor(lists, list, index)->data;
    switch ((optplug_format)lists->formats[list]) {
    case FORMAT_INT64:
        *(int64_t *)data = (int64_t)value;
        break;
    case FORMAT_FLOAT64:
        *(double *)data = value;
        break;
    case FORMAT_FLOAT32:
        *(float *)data = (float)value;
        break;
    case FORMAT_FLOAT16:
        *(uint16_t *)data = narrow_float16((float)value);
        break;
    case FORMAT_BFLOAT16:
        *(uint16_t *)data = narrow_bfloat16((float)value);
        break;
    }
}

/* One value as a tensor of a dtype has it. */
union value {
    float f32;
    double f64;
};

static double apply(elementwise operation, int bytes, const optplug_scalar *scalar, const double *values)
{
    union value to = {0}, operands[3] = {{0}};
    for (int i = 0; i < 3; i++) {
        double value = scalar->operands[i] < 0 ? 0 : values[scalar->operands[i]];
        if (bytes == 8)
            operands[i].f64 = value;
        else
            operands[i].f32 = (float)value;
    }
    operation(1, &to, &operands[0], &operands[1], &operands[2],
              scalar->operands[3] < 0 ? 0 : values[scalar->operands[3]],
              scalar->operands[4] < 0 ? 0 : values[scalar->operands[4]]);
    return bytes == 8 ? to.f64 : to.f32;
}

/* As float.__mod__ in CPython's Objects/floatobject.c; of whole numbers as int.__mod__. */
static double modulo(double a, double b)
{
    double rest = fmod(a, b);
    if (rest != 0)
        return (b < 0) != (rest < 0) ? rest + b : rest;
    return copysign(0, b);
}

static double compute(const struct scalars *scalars, int i, const struct lists *lists, int index,
                      const double *options, const double *values)
{
    const optplug_scalar *scalar = &scalars->each[i];
    double a = scalar->kind >= SCALAR_ADD && scalar->kind <= SCALAR_ROUND ? values[scalar->a] : 0;
    double b =
        scalar->kind >= SCALAR_ADD && scalar->kind <= SCALAR_EQUAL && scalar->b >= 0 ? values[scalar->b] : 0;
    switch ((optplug_scalar_kind)scalar->kind) {
    case SCALAR_CONSTANT:
        return scalar->constant;
    case SCALAR_OPTION:
        return options[scalar->a];
    case SCALAR_ITEM:
        return item(lists, scalar->a, index);
    case SCALAR_ADD:
        return a + b;
    case SCALAR_SUBTRACT:
        return a - b;
    case SCALAR_MULTIPLY:
        return a * b;
    case SCALAR_DIVIDE:
        return a / b;
    case SCALAR_POWER:
        return pow(a, b);
    case SCALAR_MODULO:
        return modulo(a, b);
    case SCALAR_NEGATE:
        return -a;
    case SCALAR_SQRT:
        return sqrt(a);
    case SCALAR_COS:
        return cos(a);
    case SCALAR_FLOOR:
        return floor(a);
    case SCALAR_LESS:
        return a < b;
    case SCALAR_LESS_OR_EQUAL:
        return a <= b;
    case SCALAR_EQUAL:
        return a == b;
    case SCALAR_ROUND:
        return elementwise_round(a, scalar->b);
    case SCALAR_ELEMENTWISE:
        return elementwise_round(apply(scalars->operations[i], worked_in(scalar->b), scalar, values),
                                 scalar->b);
    }
    return 0;
}

/* Tell whether the operations on tensors of one value take their scalars. */
static int all_fit(const struct scalars *scalars, const double *values)
{
    for (int i = 0; i < scalars->count; i++) {
        const optplug_scalar *scalar = &scalars->each[i];
        for (int k = 3; scalar->kind == SCALAR_ELEMENTWISE && k < 5; k++)
            if (scalar->operands[k] >= 0 &&
                !elementwise_takes(values[scalar->operands[k]], worked_in(scalar->b)))
                return 0;
    }
    return 1;
}

/* Tell whether Python may raise an error where the result is not finite. */
static int may_raise(int kind)
{
    return kind == SCALAR_DIVIDE || kind == SCALAR_POWER || kind == SCALAR_MODULO || kind == SCALAR_SQRT ||
           kind == SCALAR_COS || kind == SCALAR_FLOOR;
}

int scalars_evaluate(const struct scalars *scalars, const struct lists *lists, int index,
                     const double *options, double *values)
{
    for (int i = 0; i < scalars->count; i++) {
        values[i] = compute(scalars, i, lists, index, options, values);
        if (may_raise(scalars->each[i].kind) && !isfinite(values[i]))
            return 0;
    }
    for (int i = 0; i < scalars->guard_count; i++)
        if ((values[scalars->guards[2 * i]] != 0) != scalars->guards[2 * i + 1])
            return 0;
    return all_fit(scalars, values);
}
