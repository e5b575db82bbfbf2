#include "record.h"

#include <stdlib.h>
#include <string.h>

#include "elementwise.h"
#include "mkl.h"
#include "openmp.h"
#include "scalars.h"
#include "strided.h"

/* A block's bytes: as many as there is room for, on the stack of a thread that has little, beside temporary
 * arrays and those with gaps.  Within a block all operations are made on so few bytes that the processor, which
 * looks ahead, begins the next one while it still divides and waits for memory: but Intel's square root, whose
 * call may take as long as 1000 of its values, is made on all of it. */
enum { MOST = 8192, FEW = 2048, MAX_BLOCKS = 16, ROOM = MAX_BLOCKS * FEW };
/* How many arrays a record may work on. */
enum { MAX_ARRAYS = 64 };
/* How many values must lie together to be worth calls of their own. */
enum { WORTH_A_CALL = 128 };

struct instruction {
    elementwise runs[2]; /* for whole vectors, and at the end of a thread's share */
    int to, a, b, c, v, u;
    int is_wide; /* whether it is made on a whole block at once */
    int rounds;  /* whether, in half precision, values are read again that are not rounded by themselves */
};

struct record {
    struct scalars scalars;
    int store_count, instruction_count, temporary_count;
    int *stores;
    struct instruction *instructions;
    int *is_used, *is_written; /* which lists it reads or changes, and changes */
    int64_t lanes;             /* of the vectors; 1: an array's end is like the rest */
    int64_t block;             /* the bytes of a block */
};

struct records {
    int count, most_scalars;
    struct record *each;
    struct lists lists;
    int size;         /* of a value of an array */
    int is_half;      /* whether those are in half precision, ... */
    struct half half; /* ... and what that is in float32 */
    int *is_item;     /* which lists hold one value, and are read as scalars */
    struct gapped gapped;
    int *chosen;           /* which record each parameter runs, ... */
    const double **values; /* ... with which scalars: those of the parameter before, if they are the same */
    double *memory;        /* of the scalars */
};

static optplug_tensor *tensor(const struct records *records, int list, int parameter)
{
    return lists_tensor(&records->lists, list, parameter);
}

const optplug_tensor *records_list(const struct records *records, int list)
{
    return tensor(records, list, 0);
}

int records_all(const struct records *records, int list,
                int (*holds)(const void *values, int64_t n, const void *context), const void *context)
{
    _Alignas(64) char block[FEW];
    const int size = records->size;
    for (int p = 0; p < records->lists.length; p++) {
        const optplug_tensor *t = tensor(records, list, p);
        const struct strided *gaps = gapped_find(&records->gapped, list, p);
        if (!gaps && !holds(t->data, t->n, context))
            return 0;
        for (int64_t i = 0; gaps && i < t->n; i += FEW / size) {
            int64_t n = t->n - i < FEW / size ? t->n - i : FEW / size;
            strided_read(gaps, t->data, size, i, n, block);
            if (!holds(block, n, context))
                return 0;
        }
    }
    return 1;
}

/* ---- making them ---- */

/* Return how a dtype's values are written; 0 if records have no such. */
static int format_of(const char *dtype)
{
    static const struct {
        const char *dtype;
        optplug_format format;
    } known[] = {{"float16", FORMAT_FLOAT16},
                 {"bfloat16", FORMAT_BFLOAT16},
                 {"float32", FORMAT_FLOAT32},
                 {"float64", FORMAT_FLOAT64},
                 {"int64", FORMAT_INT64}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strcmp(dtype, known[i].dtype) == 0)
            return known[i].format;
    return 0;
}

static void *copy(const void *from, int count, size_t size)
{
    void *to = malloc((size_t)count * size + 1);
    if (to && count > 0)
        memcpy(to, from, (size_t)count * size);
    return to;
}

/* Tell whether an operation's results need no rounding where its operands are rounded. */
static int is_exact(int operation)
{
    return operation == ELEMENTWISE_COPY || operation == ELEMENTWISE_NEGATE || operation == ELEMENTWISE_ABS ||
           operation == ELEMENTWISE_MAXIMUM || operation == ELEMENTWISE_MINIMUM;
}

/* Tell whether a later instruction reads what this one makes. */
static int is_read_later(const optplug_record *record, int i)
{
    const int to = record->instructions[i].to;
    for (int k = i + 1; k < record->instruction_count; k++) {
        const optplug_instruction *later = &record->instructions[k];
        if (later->a == to || later->b == to || later->c == to)
            return 1;
        if (later->to == to)
            return 0;
    }
    return 0;
}

/* Return the bytes of a block, of which a record needs a few. */
static int64_t block_of(int blocks, int is_wide, int is_copied)
{
    /* Values to last four times as long as their call. While it runs, nothing else is fetched from memory. */
    int64_t wanted = is_wide ? 4 * mkl_cost() * (int64_t)sizeof(float) : is_copied ? MOST : FEW;
    int64_t most = blocks * MOST <= ROOM ? MOST : ROOM / blocks / FEW * FEW;
    wanted = (wanted + FEW - 1) / FEW * FEW;
    return wanted < most ? wanted : most;
}

static int make_record(struct records *records, struct record *record, const optplug_record *given)
{
    const int bytes = worked_in(records->lists.formats[0]);
    const int copies = records->is_half ? records->lists.count : records->gapped.count;
    const int blocks = given->temporary_count + copies;
    int is_wide = 0;
    record->store_count = given->store_count;
    record->instruction_count = given->instruction_count;
    record->temporary_count = given->temporary_count;
    record->stores = copy(given->stores, 2 * given->store_count, sizeof *given->stores);
    record->instructions = calloc((size_t)given->instruction_count + 1, sizeof *record->instructions);
    record->is_used = calloc((size_t)records->lists.count, sizeof *record->is_used);
    record->is_written = calloc((size_t)records->lists.count, sizeof *record->is_written);
    record->lanes = given->lanes > 0 ? given->lanes : 1;
    if (!scalars_make(&record->scalars, given) || !record->stores || !record->instructions ||
        !record->is_used || !record->is_written || blocks > MAX_BLOCKS ||
        records->lists.count + given->temporary_count > MAX_ARRAYS)
        return 0;
    for (int i = 0; i < given->scalar_count; i++)
        if (given->scalars[i].kind == SCALAR_ITEM)
            records->is_item[given->scalars[i].a] = 1;
    for (int i = 0; i < given->instruction_count; i++) {
        const optplug_instruction *from = &given->instructions[i];
        struct instruction *to = &record->instructions[i];
        *to = (struct instruction){
            .runs = {elementwise_find(from->elementwise, bytes), elementwise_find(from->end, bytes)},
            .to = from->to,
            .a = from->a,
            .b = from->b,
            .c = from->c,
            .v = from->v,
            .u = from->u,
            .is_wide = from->elementwise == ELEMENTWISE_SQRT_MKL,
            .rounds = records->is_half && is_read_later(given, i) && !is_exact(from->elementwise)};
        if (!to->runs[0] || !to->runs[1])
            return 0;
        is_wide |= to->is_wide;
        const int numbers[] = {to->a, to->b, to->c, to->to};
        for (int k = 0; k < 4; k++)
            if (numbers[k] >= 0 && numbers[k] < records->lists.count)
                record->is_used[numbers[k]] = 1;
        if (to->to < records->lists.count)
            record->is_written[to->to] = 1;
    }
    record->block = block_of(blocks, is_wide, copies > 0);
    return 1;
}

struct records *records_make(const optplug_operator *given)
{
    struct records *records = calloc(1, sizeof *records);
    if (!records)
        return NULL;
    records->lists.count = given->lists;
    records->lists.length = given->lengths[0];
    size_t length = (size_t)records->lists.length + 1;
    records->lists.tensors =
        copy(given->tensors, given->lists * records->lists.length, sizeof *given->tensors);
    records->lists.formats = calloc((size_t)given->lists, sizeof *records->lists.formats);
    records->is_item = calloc((size_t)given->lists, sizeof *records->is_item);
    records->each = calloc((size_t)given->record_count, sizeof *records->each);
    records->chosen = calloc(length, sizeof *records->chosen);
    records->values = calloc(length, sizeof *records->values);
    if (!records->lists.tensors || !records->lists.formats || !records->is_item || !records->each ||
        !records->chosen || !records->values || !gapped_make(&records->gapped, given)) {
        records_free(records);
        return NULL;
    }
    for (int i = 0; i < given->lists; i++)
        if (!(records->lists.formats[i] = format_of(tensor(records, i, 0)->dtype))) {
            records_free(records);
            return NULL;
        }
    records->size = abs(records->lists.formats[0]);
    records->is_half = records->size == 2;
    records->half = half_find(records->lists.formats[0]);
    for (int i = 0; i < given->record_count; i++) {
        records->count++;
        if (!make_record(records, &records->each[i], &given->records[i])) {
            records_free(records);
            return NULL;
        }
        if (records->each[i].scalars.count > records->most_scalars)
            records->most_scalars = records->each[i].scalars.count;
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
        scalars_free(&record->scalars);
        free(record->stores);
        free(record->instructions);
        free(record->is_used);
        free(record->is_written);
    }
    free(records->each);
    free(records->lists.tensors);
    free(records->lists.formats);
    free(records->is_item);
    gapped_free(&records->gapped);
    free(records->chosen);
    free(records->values);
    free(records->memory);
    free(records);
}

/* ---- scalars ---- */

/* Compute the scalars that a record has for a parameter; 0 if the record does not hold. */
static int evaluate(const struct records *records, const struct record *record, int parameter,
                    const double *options, double *values)
{
    const int bytes = worked_in(records->lists.formats[0]);
    if (!scalars_evaluate(&record->scalars, &records->lists, parameter, options, values))
        return 0;
    for (int i = 0; i < record->instruction_count; i++) {
        const struct instruction *instruction = &record->instructions[i];
        if ((instruction->v >= 0 && !elementwise_takes(values[instruction->v], bytes)) ||
            (instruction->u >= 0 && !elementwise_takes(values[instruction->u], bytes)))
            return 0;
    }
    return 1;
}

/* Tell whether the scalars of a parameter begin as those of the one before. */
static int is_as_before(const struct records *records, int parameter)
{
    for (int i = 0; parameter > 0 && i < records->lists.count; i++)
        if (records->is_item[i] &&
            memcmp(tensor(records, i, parameter)->data, tensor(records, i, parameter - 1)->data,
                   (size_t)abs(records->lists.formats[i])) != 0)
            return 0;
    return parameter > 0;
}

int records_prepare(struct records *records, const double *options)
{
    for (int p = 0; p < records->lists.length; p++) {
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

/* Find a block of the arrays with gaps: where it is, if it lies together in all of them for long enough, or
 * copied together.  Return how many values are in it, n at the most. */
static int64_t find_gapped(const struct job *job, int64_t first, int64_t n, char *blocks, char **found,
                           int *is_copied)
{
    const struct gapped *gapped = &job->records->gapped;
    const int size = job->records->size;
    int64_t together = n;
    for (int k = 0; k < gapped->count; k++) {
        const optplug_tensor *t = tensor(job->records, gapped->lists[k], job->parameter);
        const struct strided *gaps = gapped_find(gapped, gapped->lists[k], job->parameter);
        int64_t run = n;
        found[k] = (char *)t->data + (gaps ? strided_place(gaps, first, &run) : first) * size;
        if (run < together)
            together = run;
    }
    *is_copied = together < n && together < WORTH_A_CALL;
    if (!*is_copied)
        return together;
    for (int k = 0; k < gapped->count; k++) {
        const struct strided *gaps = gapped_find(gapped, gapped->lists[k], job->parameter);
        if (gaps) {
            found[k] = blocks + k * job->record->block;
            strided_read(gaps, tensor(job->records, gapped->lists[k], job->parameter)->data, size, first, n,
                         found[k]);
        }
    }
    return n;
}

/* Copy a block back, of those arrays with gaps that the record changes. */
static void put_back(const struct job *job, int64_t first, int64_t n, char *blocks)
{
    const struct gapped *gapped = &job->records->gapped;
    for (int k = 0; k < gapped->count; k++) {
        int list = gapped->lists[k];
        const struct strided *gaps = gapped_find(gapped, list, job->parameter);
        if (gaps && job->record->is_written[list])
            strided_write(gaps, tensor(job->records, list, job->parameter)->data, job->records->size, first,
                          n, blocks + k * job->record->block);
    }
}

/* Make the instructions from first to last on n values, from a place in each array on. */
static void run_instructions(const struct job *job, int first, int last, int which, char *const *arrays,
                             int64_t place, int64_t n)
{
    for (int k = first; k < last; k++) {
        const struct instruction *instruction = &job->record->instructions[k];
        char *to = arrays[instruction->to] + place;
        instruction->runs[which](n, to, instruction->a < 0 ? NULL : arrays[instruction->a] + place,
                                 instruction->b < 0 ? NULL : arrays[instruction->b] + place,
                                 instruction->c < 0 ? NULL : arrays[instruction->c] + place,
                                 instruction->v < 0 ? 0 : job->values[instruction->v],
                                 instruction->u < 0 ? 0 : job->values[instruction->u]);
        if (instruction->rounds)
            job->records->half.round(n, to, to, NULL, NULL, 0, 0);
    }
}

/* Make all of them on a block of n values, few at a time between those that are made on all. */
static void run_block(const struct job *job, int which, char *const *arrays, int64_t n)
{
    const struct record *record = job->record;
    const int size = worked_in(job->records->lists.formats[0]), few = FEW / size;
    for (int last, first = 0; first < record->instruction_count; first = last) {
        const int is_wide = record->instructions[first].is_wide;
        for (last = first + 1; last < record->instruction_count && !is_wide; last++)
            if (record->instructions[last].is_wide)
                break;
        for (int64_t i = 0, some = is_wide ? n : few; i < n; i += some)
            run_instructions(job, first, last, which, arrays, i * size, n - i < some ? n - i : some);
    }
}

/* Run a record over a part of a parameter's arrays. */
static void run_part(const struct job *job, int64_t begin, int64_t end, int which)
{
    const struct record *record = job->record;
    const struct records *records = job->records;
    const int lists = records->lists.count, gapped = records->gapped.count;
    const int64_t block = record->block / records->size;
    _Alignas(64) char blocks[ROOM]; /* of arrays with gaps, and temporary ones */
    char *found[MAX_BLOCKS], *arrays[MAX_ARRAYS];
    int is_copied = 0;
    for (int i = 0; i < record->temporary_count; i++)
        arrays[lists + i] = blocks + (gapped + i) * record->block;
    for (int64_t n, i = begin; i < end; i += n) {
        n = end - i < block ? end - i : block;
        if (gapped)
            n = find_gapped(job, i, n, blocks, found, &is_copied);
        for (int list = 0; list < lists; list++) {
            if (!record->is_used[list])
                continue;
            const int place = records->gapped.places[list];
            arrays[list] = place >= 0
                               ? found[place]
                               : (char *)tensor(records, list, job->parameter)->data + i * records->size;
        }
        run_block(job, which, arrays, n);
        if (is_copied)
            put_back(job, i, n, blocks);
    }
}

/* Copy a block of a list's values to float32, or back. */
static void convert(const struct job *job, int list, int64_t first, int64_t n, void *block, int back)
{
    const struct half *half = &job->records->half;
    const struct strided *gaps = gapped_find(&job->records->gapped, list, job->parameter);
    void *data = tensor(job->records, list, job->parameter)->data;
    uint16_t together[MOST / sizeof(float)], *values = gaps ? together : (uint16_t *)data + first;
    if (gaps && !back)
        strided_read(gaps, data, 2, first, n, together);
    if (back)
        half->narrow(n, values, block, NULL, NULL, 0, 0);
    else
        half->widen(n, block, values, NULL, NULL, 0, 0);
    if (gaps && back)
        strided_write(gaps, data, 2, first, n, together);
}

/* The same in half precision: each block is float32 while a record is run over it, rounded by each operation. */
static void run_half_part(const struct job *job, int64_t begin, int64_t end, int which)
{
    const struct record *record = job->record;
    const int lists = job->records->lists.count;
    const int64_t block = record->block / (int64_t)sizeof(float);
    _Alignas(64) char blocks[ROOM];
    char *arrays[MAX_ARRAYS];
    for (int i = 0; i < lists + record->temporary_count; i++)
        arrays[i] = blocks + i * record->block;
    for (int64_t n, i = begin; i < end; i += n) {
        n = end - i < block ? end - i : block;
        for (int list = 0; list < lists; list++)
            if (record->is_used[list])
                convert(job, list, i, n, arrays[list], 0);
        run_block(job, which, arrays, n);
        for (int list = 0; list < lists; list++)
            if (record->is_written[list])
                convert(job, list, i, n, arrays[list], 1);
    }
}

/* Run a record over a thread's share of a parameter's arrays. */
static void run_range(const struct job *job, int64_t begin, int64_t end)
{
    const int64_t rest = begin + (end - begin) / job->record->lanes * job->record->lanes;
    void (*run)(const struct job *, int64_t, int64_t, int) = job->records->is_half ? run_half_part : run_part;
    run(job, begin, rest, 0);
    run(job, rest, end, 1);
}

static void run_share(void *data, int thread, int threads)
{
    const struct job *job = data;
    int64_t end, begin = openmp_share(job->n, thread, threads, &end);
    run_range(job, begin, end);
}

void records_run(const struct records *records)
{
    for (int p = 0; p < records->lists.length; p++) {
        const struct record *record = &records->each[records->chosen[p]];
        struct job job = {records, record, records->values[p], p, tensor(records, 0, p)->n};
        if (job.n >= WORTH_THREADS)
            openmp_run(run_share, &job);
        else
            run_range(&job, 0, job.n);
        for (int i = 0; i < record->store_count; i++)
            scalars_store(&records->lists, record->stores[2 * i], p,
                          records->values[p][record->stores[2 * i + 1]]);
    }
}
