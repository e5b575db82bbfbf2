#include "ranks.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "elementwise.h"
#include "error.h"
#include "optplug.h"

struct ranks {
    optplug_ranks given;
    pid_t process; /* that is the rank: a child of fork is none */
    optplug_exchange *exchanges;
    optplug_slice *slices; /* of all exchanges */
    struct moving {
        uint64_t seed;
        const double *number;
    } *moving; /* hyperparameters that C changes */
};

struct ranks *ranks_make(const optplug_ranks *given, double *const *scalars)
{
    int count = 0;
    for (int i = 0; i < given->count; i++)
        count += given->exchanges[i].count;
    struct ranks *ranks = given->size > 0 ? calloc(1, sizeof *ranks) : NULL;
    if (!ranks)
        return NULL;
    ranks->given = *given;
    ranks->process = getpid();
    ranks->exchanges = calloc((size_t)given->count + 1, sizeof *ranks->exchanges);
    ranks->slices = calloc((size_t)count + 1, sizeof *ranks->slices);
    ranks->moving = calloc((size_t)given->moving + 1, sizeof *ranks->moving);
    if (!ranks->exchanges || !ranks->slices || !ranks->moving) {
        ranks_free(ranks);
        return NULL;
    }
    optplug_slice *slices = ranks->slices;
    for (int i = 0; i < given->count; i++) {
        const optplug_exchange *exchange = &given->exchanges[i];
        memcpy(slices, exchange->slices, (size_t)exchange->count * sizeof *slices);
        ranks->exchanges[i] = *exchange;
        ranks->exchanges[i].slices = slices;
        slices += exchange->count;
    }
    for (int i = 0; i < given->moving; i++)
        ranks->moving[i] = (struct moving){given->seeds[i], scalars[given->places[i]]};
    return ranks;
}

void ranks_free(struct ranks *ranks)
{
    if (!ranks)
        return;
    free(ranks->exchanges);
    free(ranks->slices);
    free(ranks->moving);
    free(ranks);
}

int ranks_size(const struct ranks *ranks) { return ranks->given.size; }

int ranks_reduces(const struct ranks *ranks) { return ranks->given.count > 0; }

/* ---- what must be alike on all ranks ---- */

/* Mix 64 bits, as digest.py does: the end of splitmix64. */
static uint64_t mixed(uint64_t x)
{
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9;
    x = (x ^ x >> 27) * 0x94D049BB133111EB;
    return x ^ x >> 31;
}

static uint64_t digest(const struct ranks *ranks)
{
    uint64_t sum = *ranks->given.rest;
    for (int i = 0; i < ranks->given.moving; i++) {
        double number = *ranks->moving[i].number + 0.0; /* one zero, whatever its sign */
        uint64_t bits;
        memcpy(&bits, &number, sizeof bits);
        sum += mixed(ranks->moving[i].seed ^ bits);
    }
    return sum;
}

double ranks_digest(const struct ranks *ranks) { return (double)(digest(ranks) >> 11); }

static double number(const void *numbers, int64_t i, int bytes)
{
    return bytes == 8 ? ((const double *)numbers)[i] : ((const float *)numbers)[i];
}

/* Write what a rank sends with its gradients: that it has not failed, and the bits of its digest. */
static void put_flags(void *to, int bytes, uint64_t bits)
{
    bits <<= 1;
    for (int i = 0; i < RANKS_FLAGS; i++, bits >>= 1)
        if (bytes == 8)
            ((double *)to)[i] = bits & 1;
        else
            ((float *)to)[i] = bits & 1;
}

/* Tell what is wrong by the sums of those of all ranks. */
static int find_wrong(const void *flags, int bytes, int size)
{
    if (number(flags, 0, bytes) != 0)
        return RANKS_FAILED;
    for (int i = 1; i < RANKS_FLAGS; i++)
        if (number(flags, i, bytes) != 0 && number(flags, i, bytes) != size)
            return RANKS_DIFFER;
    return 0;
}

/* Return a checksum of some values of the host's gradients, as sliced.py does. */
static uint64_t look(const struct ranks *ranks)
{
    uint64_t sum = 0, weight = 1;
    for (int i = 0; i < ranks->given.count; i++)
        for (int j = 0; j < ranks->exchanges[i].count; j++) {
            const optplug_slice *slice = &ranks->exchanges[i].slices[j];
            int64_t step = (slice->n + RANKS_SEEN - 1) / RANKS_SEEN;
            for (int64_t k = 0; slice->reduction && k < slice->n; k += step, weight += 2) {
                uint64_t bits;
                uint32_t single;
                if (ranks->exchanges[i].bytes == 8)
                    memcpy(&bits, (const double *)slice->grad + k, sizeof bits);
                else
                    memcpy(&single, (const float *)slice->grad + k, sizeof single), bits = single;
                sum += weight * bits;
            }
        }
    return sum;
}

/* ---- what is sent ---- */

static int run(struct ranks *ranks, collective_caller call, const char *what, const char *dtype,
               const void *send, void *receive, int64_t count, int64_t bytes)
{
    const optplug_ranks *of = &ranks->given;
    of->sent[0]++;
    of->sent[1] += count * bytes;
    int status = call(of->collective, of->user, what, dtype, send, receive, count);
    if (status == 0)
        return 1;
    return fail(status < 0 ? status : OPT_EINVAL, "the host's collective '%s' failed with status %d", what,
                status);
}

/* Return how many bytes of a slice a rank has. */
static size_t bytes_of(const optplug_slice *slice, int rank, int bytes)
{
    int64_t rest = slice->n - rank * slice->length;
    return rest <= 0 ? 0 : (size_t)(rest < slice->length ? rest : slice->length) * (size_t)bytes;
}

/* Return where a rank's part of a whole begins. */
static char *part(void *whole, const optplug_slice *slice, int rank, int bytes)
{
    return (char *)whole + rank * slice->length * bytes;
}

static int reduce(struct ranks *ranks, collective_caller call, const optplug_exchange *exchange, int *wrong)
{
    int rank = ranks->given.rank, size = ranks->given.size, bytes = exchange->bytes;
    int64_t length = 0;
    for (int i = 0; i < exchange->count; i++)
        if (exchange->slices[i].reduction)
            length += exchange->slices[i].length;
    if (length == 0)
        return 1;
    uint64_t bits = digest(ranks);
    char *to = exchange->rows;
    for (int r = 0; r < size; r++) {
        for (int i = 0; i < exchange->count; i++) {
            const optplug_slice *slice = &exchange->slices[i];
            if (!slice->reduction)
                continue;
            memcpy(to, part(slice->grad, slice, r, bytes), bytes_of(slice, r, bytes));
            to += slice->length * bytes;
        }
        put_flags(to, bytes, bits);
        to += RANKS_FLAGS * bytes;
    }
    int status = run(ranks, call, "reduce_scatter", bytes == 8 ? "float64" : "float32", exchange->rows,
                     exchange->got, length + RANKS_FLAGS, bytes);
    if (status <= 0)
        return status;
    const char *from = exchange->got;
    for (int i = 0; i < exchange->count; i++) {
        const optplug_slice *slice = &exchange->slices[i];
        if (!slice->reduction)
            continue;
        size_t mine = bytes_of(slice, rank, bytes);
        if (slice->reduction == REDUCTION_MEAN)
            elementwise_find(exchange->div_scalar, bytes)((int64_t)mine / bytes, slice->reduced, from, NULL,
                                                          NULL, size, 0);
        else
            memcpy(slice->reduced, from, mine);
        from += slice->length * bytes;
    }
    int found = find_wrong(from, bytes, size);
    if (found && *wrong != RANKS_FAILED)
        *wrong = found;
    return 1;
}

int ranks_reduce(struct ranks *ranks, collective_caller call)
{
    if (ranks->given.state[1])
        return 0;
    if (ranks->given.count == 0)
        return 1;
    if (getpid() != ranks->process)
        return 0;
    if (*ranks->given.state > 0)
        return *ranks->given.state == RANKS_REDUCED_NOW || *ranks->given.seen == look(ranks);
    int wrong = 0;
    for (int i = 0; i < ranks->given.count; i++) {
        int status = reduce(ranks, call, &ranks->exchanges[i], &wrong);
        if (status <= 0)
            return status;
    }
    *ranks->given.state = wrong ? wrong : RANKS_REDUCED_NOW;
    return !wrong;
}

void ranks_settle(struct ranks *ranks, int is_kept)
{
    if (*ranks->given.state != RANKS_REDUCED_NOW)
        return;
    *ranks->given.state = is_kept ? RANKS_REDUCED : RANKS_NEW;
    if (is_kept)
        *ranks->given.seen = look(ranks);
}

void ranks_zero(struct ranks *ranks)
{
    *ranks->given.state = RANKS_NEW;
    for (int i = 0; i < ranks->given.count; i++)
        for (int j = 0; j < ranks->exchanges[i].count; j++) {
            const optplug_slice *slice = &ranks->exchanges[i].slices[j];
            memset(slice->grad, 0, (size_t)slice->n * (size_t)ranks->exchanges[i].bytes);
        }
}

/* Write the number after a row of values that says whether its rank has failed. */
static void put_failed(void *row, int64_t length, int bytes, int has_failed)
{
    if (bytes == 8)
        ((double *)row)[length] = has_failed;
    else
        ((float *)row)[length] = (float)has_failed;
}

int ranks_publish(struct ranks *ranks, collective_caller call, int has_failed)
{
    *ranks->given.state = RANKS_NEW;
    for (int i = 0; i < ranks->given.count; i++) {
        const optplug_exchange *exchange = &ranks->exchanges[i];
        int rank = ranks->given.rank, bytes = exchange->bytes;
        int64_t length = 0;
        for (int j = 0; j < exchange->count; j++) {
            const optplug_slice *slice = &exchange->slices[j];
            memcpy((char *)exchange->row + length * bytes, part(slice->data, slice, rank, bytes),
                   bytes_of(slice, rank, bytes));
            length += slice->length;
        }
        put_failed(exchange->row, length++, bytes, has_failed);
        int status =
            run(ranks, call, "all_gather", "uint8", exchange->row, exchange->gathered, length * bytes, 1);
        if (status <= 0)
            return status;
        for (int r = 1; r <= ranks->given.size; r++)
            if (number(exchange->gathered, r * length - 1, bytes) != 0) {
                *ranks->given.state = has_failed ? RANKS_BROKEN : RANKS_TORN;
                return 0;
            }
        const char *from = exchange->gathered;
        for (int r = 0; r < ranks->given.size; r++, from += bytes)
            for (int j = 0; j < exchange->count; j++) {
                const optplug_slice *slice = &exchange->slices[j];
                memcpy(part(slice->data, slice, r, bytes), from, bytes_of(slice, r, bytes));
                from += slice->length * bytes;
            }
    }
    return 1;
}

int ranks_numbers(struct ranks *ranks, collective_caller call, const double *mine, int count,
                  const double **all)
{
    if (getpid() != ranks->process)
        return 0;
    double *table = ranks->given.table;
    memcpy(table, mine, (size_t)count * sizeof *table);
    *all = table + count;
    return run(ranks, call, "all_gather", "uint8", table, table + count, count * (int64_t)sizeof *table, 1);
}
