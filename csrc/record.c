#include "record.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "elementwise.h"
#include "openmp.h"

/* A block's bytes, so that what a record works on stays in the first cache, and the temporary arrays of all
 * fit on the stack of a thread that has little. */
enum { BLOCK = 2048, MAX_TEMPORARIES = 8 };
enum { IS_INTEGER = -8 };

struct instruction {
    elementwise run;
    int to, a, b, c, v, u;
};

struct record {
    int scalar_count, guard_count, store_count, instruction_count;
    optplug_scalar *scalars;
    elementwise *scalar_operations; /* of those that are operations on tensors, float32's and float64's */
    int *guards, *stores;
    struct instruction *instructions;
};

struct records {
    int count, most_scalars, list_count, length;
    struct record *each;
    optplug_tensor *tensors; /* list after list, `length` in each */
    int *bytes;              /* of a value, of each list; of one of int64 IS_INTEGER */
    int *is_item;            /* which lists hold one value, and are read as scalars */
    int *chosen;             /* which record each parameter runs, ... */
    const double **values;   /* ... with which scalars: those of the parameter before, if they are the same */
    double *memory;          /* of the scalars */
};

static optplug_tensor *tensor(const struct records *records, int list, int parameter)
{
    return &records->tensors[(size_t)list * (size_t)records->length + (size_t)parameter];
}

const optplug_tensor *records_list(const struct records *records, int list, int *length)
{
    *length = records->length;
    return tensor(records, list, 0);
}

/* ---- making them ---- */

static void *copy(const void *from, int count, size_t size)
{
    void *to = malloc((size_t)count * size + 1);
    if (to && count > 0)
        memcpy(to, from, (size_t)count * size);
    return to;
}

static int make_record(struct records *records, struct record *record, const optplug_record *given, int bytes)
{
    record->scalar_count = given->scalar_count;
    record->guard_count = given->guard_count;
    record->store_count = given->store_count;
    record->instruction_count = given->instruction_count;
    record->scalars = copy(given->scalars, given->scalar_count, sizeof *given->scalars);
    record->guards = copy(given->guards, 2 * given->guard_count, sizeof *given->guards);
    record->stores = copy(given->stores, 2 * given->store_count, sizeof *given->stores);
    record->scalar_operations = calloc((size_t)given->scalar_count + 1, sizeof *record->scalar_operations);
    record->instructions = calloc((size_t)given->instruction_count + 1, sizeof *record->instructions);
    if (!record->scalars || !record->guards || !record->stores || !record->scalar_operations ||
        !record->instructions || given->temporary_count > MAX_TEMPORARIES)
        return 0;
    for (int i = 0; i < given->scalar_count; i++) {
        const optplug_scalar *scalar = &given->scalars[i];
        if (scalar->kind == SCALAR_ITEM)
            records->is_item[scalar->a] = 1;
        if (scalar->kind != SCALAR_ELEMENTWISE)
            continue;
        record->scalar_operations[i] = elementwise_find(scalar->elementwise, scalar->b);
        if (!record->scalar_operations[i])
            return 0;
    }
    for (int i = 0; i < given->instruction_count; i++) {
        const optplug_instruction *from = &given->instructions[i];
        struct instruction *to = &record->instructions[i];
        *to = (struct instruction){elementwise_find(from->elementwise, bytes),
                                   from->to,
                                   from->a,
                                   from->b,
                                   from->c,
                                   from->v,
                                   from->u};
        if (!to->run)
            return 0;
    }
    return 1;
}

struct records *records_make(const optplug_operator *given)
{
    struct records *records = calloc(1, sizeof *records);
    if (!records)
        return NULL;
    records->list_count = given->lists;
    records->length = given->lengths[0];
    size_t length = (size_t)records->length + 1;
    records->tensors = copy(given->tensors, given->lists * records->length, sizeof *given->tensors);
    records->bytes = calloc((size_t)given->lists, sizeof *records->bytes);
    records->is_item = calloc((size_t)given->lists, sizeof *records->is_item);
    records->each = calloc((size_t)given->record_count, sizeof *records->each);
    records->chosen = calloc(length, sizeof *records->chosen);
    records->values = calloc(length, sizeof *records->values);
    if (!records->tensors || !records->bytes || !records->is_item || !records->each || !records->chosen ||
        !records->values) {
        records_free(records);
        return NULL;
    }
    for (int i = 0; i < given->lists; i++) {
        const char *dtype = tensor(records, i, 0)->dtype;
        records->bytes[i] = strcmp(dtype, "float64") == 0 ? 8 : strcmp(dtype, "int64") == 0 ? IS_INTEGER : 4;
    }
    for (int i = 0; i < given->record_count; i++) {
        records->count++;
        if (!make_record(records, &records->each[i], &given->records[i], records->bytes[0])) {
            records_free(records);
            return NULL;
        }
        if (records->each[i].scalar_count > records->most_scalars)
            records->most_scalars = records->each[i].scalar_count;
    }
    records->memory = malloc(length * (size_t)(records->most_scalars + 1) * sizeof *records->memory);
    if (!records->memory) {
        records_free(records);
        return NULL;
    }
    return records;
}

void records_free(struct records *records)
{
    if (!records)
        return;
    for (int i = 0; i < records->count; i++) {
        struct record *record = &records->each[i];
        free(record->scalars);
        free(record->scalar_operations);
        free(record->guards);
        free(record->stores);
        free(record->instructions);
    }
    free(records->each);
    free(records->tensors);
    free(records->bytes);
    free(records->is_item);
    free(records->chosen);
    free(records->values);
    free(records->memory);
    free(records);
}

/* ---- scalars ---- */

static double item(const struct records *records, int list, int parameter)
{
    const void *data = tensor(records, list, parameter)->data;
    if (records->bytes[list] == IS_INTEGER)
        return (double)*(const int64_t *)data;
    return records->bytes[list] == 8 ? *(const double *)data : *(const float *)data;
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

static double compute(const struct records *records, const struct record *record, int i, int parameter,
                      const double *options, const double *values)
{
    const optplug_scalar *scalar = &record->scalars[i];
    double a = scalar->kind >= SCALAR_ADD && scalar->kind <= SCALAR_ROUND ? values[scalar->a] : 0;
    double b =
        scalar->kind >= SCALAR_ADD && scalar->kind <= SCALAR_EQUAL && scalar->b >= 0 ? values[scalar->b] : 0;
    switch ((optplug_scalar_kind)scalar->kind) {
    case SCALAR_CONSTANT:
        return scalar->constant;
    case SCALAR_OPTION:
        return options[scalar->a];
    case SCALAR_ITEM:
        return item(records, scalar->a, parameter);
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
        return scalar->b == 8 ? a : (float)a;
    case SCALAR_ELEMENTWISE:
        return apply(record->scalar_operations[i], scalar->b, scalar, values);
    }
    return 0;
}

static int all_fit(const struct record *record, const double *values, int bytes)
{
    for (int i = 0; i < record->instruction_count; i++) {
        const struct instruction *instruction = &record->instructions[i];
        if ((instruction->v >= 0 && !elementwise_takes(values[instruction->v], bytes)) ||
            (instruction->u >= 0 && !elementwise_takes(values[instruction->u], bytes)))
            return 0;
    }
    for (int i = 0; i < record->scalar_count; i++) {
        const optplug_scalar *scalar = &record->scalars[i];
        for (int k = 3; scalar->kind == SCALAR_ELEMENTWISE && k < 5; k++)
            if (scalar->operands[k] >= 0 && !elementwise_takes(values[scalar->operands[k]], scalar->b))
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

/* Compute the scalars that a record has for a parameter; 0 if the record does not hold. */
static int evaluate(const struct records *records, const struct record *record, int parameter,
                    const double *options, double *values)
{
    for (int i = 0; i < record->scalar_count; i++) {
        values[i] = compute(records, record, i, parameter, options, values);
        if (may_raise(record->scalars[i].kind) && !isfinite(values[i]))
            return 0;
    }
    for (int i = 0; i < record->guard_count; i++)
        if ((values[record->guards[2 * i]] != 0) != record->guards[2 * i + 1])
            return 0;
    return all_fit(record, values, records->bytes[0]);
}

/* Tell whether the scalars of a parameter begin as those of the one before. */
static int is_as_before(const struct records *records, int parameter)
{
    for (int i = 0; parameter > 0 && i < records->list_count; i++)
        if (records->is_item[i] &&
            memcmp(tensor(records, i, parameter)->data, tensor(records, i, parameter - 1)->data,
                   (size_t)abs(records->bytes[i])) != 0)
            return 0;
    return parameter > 0;
}

int records_prepare(struct records *records, const double *options)
{
    for (int p = 0; p < records->length; p++) {
        double *values = records->memory + (size_t)p * (size_t)records->most_scalars;
        int chosen = 0;
        if (is_as_before(records, p)) {
            records->chosen[p] = records->chosen[p - 1];
            records->values[p] = records->values[p - 1];
            continue;
        }
        while (chosen < records->count && !evaluate(records, &records->each[chosen], p, options, values))
            chosen++;
        if (chosen == records->count)
            return 0;
        records->chosen[p] = chosen;
        records->values[p] = values;
    }
    return 1;
}

/* ---- arrays ---- */

struct job {
    const struct records *records;
    const struct record *record;
    const double *values;
    int parameter;
    int64_t n;
};

/* Run a record over a part of a parameter's arrays. */
static void run_part(const struct job *job, int64_t begin, int64_t end)
{
    const struct record *record = job->record;
    const struct records *records = job->records;
    const int size = records->bytes[0], lists = records->list_count;
    const int64_t block = BLOCK / size;
    _Alignas(64) char temporary[MAX_TEMPORARIES][BLOCK];
    for (int64_t i = begin; i < end; i += block) {
        int64_t n = end - i < block ? end - i : block;
        for (int k = 0; k < record->instruction_count; k++) {
            const struct instruction *instruction = &record->instructions[k];
            const int numbers[] = {instruction->to, instruction->a, instruction->b, instruction->c};
            char *arrays[4];
            for (int j = 0; j < 4; j++)
                arrays[j] = numbers[j] < 0 ? NULL
                            : numbers[j] >= lists
                                ? temporary[numbers[j] - lists]
                                : (char *)tensor(records, numbers[j], job->parameter)->data + i * size;
            instruction->run(n, arrays[0], arrays[1], arrays[2], arrays[3],
                             instruction->v < 0 ? 0 : job->values[instruction->v],
                             instruction->u < 0 ? 0 : job->values[instruction->u]);
        }
    }
}

static void run_share(void *data, int thread, int threads)
{
    const struct job *job = data;
    const int64_t blocks = (job->n * job->records->bytes[0] + BLOCK - 1) / BLOCK;
    const int64_t block = BLOCK / job->records->bytes[0];
    int64_t begin = blocks * thread / threads * block, end = blocks * (thread + 1) / threads * block;
    run_part(job, begin, end < job->n ? end : job->n);
}

void records_run(const struct records *records)
{
    for (int p = 0; p < records->length; p++) {
        const struct record *record = &records->each[records->chosen[p]];
        struct job job = {records, record, records->values[p], p, tensor(records, 0, p)->n};
        if (job.n >= WORTH_THREADS)
            openmp_run(run_share, &job);
        else
            run_part(&job, 0, job.n);
        for (int i = 0; i < record->store_count; i++) {
            int list = record->stores[2 * i];
            double value = records->values[p][record->stores[2 * i + 1]];
            if (records->bytes[list] == IS_INTEGER)
                *(int64_t *)tensor(records, list, p)->data = (int64_t)value;
            else if (records->bytes[list] == 8)
                *(double *)tensor(records, list, p)->data = value;
            else
                *(float *)tensor(records, list, p)->data = (float)value;
        }
    }
}
