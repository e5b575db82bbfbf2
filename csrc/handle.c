/* A handle is (generation << 16 | index).  A slot's generation grows each time it is given out again,
 * so a stale handle never names a newer optimizer; a slot whose generations are used up stays out of
 * use.  Slots are never freed: whoever holds a stale handle may still lock its slot and see. */
#define _POSIX_C_SOURCE 200809L
#include "handle.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

#include "error.h"
#include "optplug.h"
#include "plan.h"
#include "staging.h"

enum { INDEX_BITS = 16, MAX_SLOTS = 1 << INDEX_BITS, MAX_GENERATION = INT16_MAX };

struct slot {
    pthread_mutex_t lock;
    int index;
    int generation;
    int live;
    int depth; /* how often its owner has it locked */
    int held;  /* while the process forks: by the thread that does */
    int lost;  /* in a child: to another thread of the parent */
    int left;  /* a function of the host's has not come back */
    struct callback *callback;
    struct plan *plan;
    int64_t steps; /* that plans have made, and Python does not know of */
    struct staging staging;
    struct slot *next_free;
};

static struct slot *_Atomic slots[MAX_SLOTS];
static int slot_count;
static struct slot *free_slots;
static pthread_mutex_t table_lock = PTHREAD_MUTEX_INITIALIZER;

static void make_lock(pthread_mutex_t *lock)
{
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    /* A thread that comes back for a lock it holds, from a callback, must not hang. */
    pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_RECURSIVE);
    pthread_mutex_init(lock, &attributes);
    pthread_mutexattr_destroy(&attributes);
}

/* Make a slot with an unused index.  Call with the table locked. */
static struct slot *add_slot(void)
{
    struct slot *slot = slot_count < MAX_SLOTS ? calloc(1, sizeof *slot) : NULL;
    if (!slot)
        return NULL;
    make_lock(&slot->lock);
    slot->index = slot_count;
    atomic_store(&slots[slot_count++], slot);
    return slot;
}

int handle_new(struct slot **locked)
{
    pthread_mutex_lock(&table_lock);
    struct slot *slot = free_slots;
    if (slot)
        free_slots = slot->next_free;
    else
        slot = add_slot();
    pthread_mutex_unlock(&table_lock);
    if (!slot)
        return fail(OPT_ENOMEM,
                    "no handles left: free optimizers that you no longer need (at most %d at a time)",
                    MAX_SLOTS);

    pthread_mutex_lock(&slot->lock);
    slot->generation++;
    slot->live = 1;
    slot->depth = 1;
    *locked = slot;
    return slot->generation << INDEX_BITS | slot->index;
}

int handle_lock(int handle, enum handle_use use, struct slot **locked)
{
    struct slot *slot = handle > 0 ? atomic_load(&slots[handle & (MAX_SLOTS - 1)]) : NULL;
    if (slot)
        pthread_mutex_lock(&slot->lock);
    int live = slot && slot->live && slot->generation == handle >> INDEX_BITS;
    if (live && slot->lost) {
        pthread_mutex_unlock(&slot->lock);
        return fail(OPT_ESTATE,
                    "opt=%d was in use by another thread when the parent process forked: create another here",
                    handle);
    }
    if (live && slot->left && use != HANDLE_FREE) {
        pthread_mutex_unlock(&slot->lock);
        return fail(
            OPT_ESTATE,
            "opt=%d called a function of yours that was left by an exception, longjmp or the end of its "
            "thread: it can only be freed (opt_free)",
            handle);
    }
    if (live && (use == HANDLE_ASK || slot->depth == 0)) {
        slot->depth++;
        *locked = slot;
        return OPT_OK;
    }
    if (slot)
        pthread_mutex_unlock(&slot->lock);
    if (live)
        return fail(OPT_ESTATE, "opt=%d is in the middle of the step that called this function", handle);
    if (handle < 0 && error_kept()[0])
        return fail(OPT_EHANDLE, "opt=%d is not an optimizer: opt_create failed: %s", handle, error_kept());
    return fail(OPT_EHANDLE,
                "opt=%d is not an optimizer: opt_create did not return it, or opt_free has freed it", handle);
}

void handle_unlock(struct slot *slot)
{
    slot->depth--;
    pthread_mutex_unlock(&slot->lock);
}

struct plan *handle_plan(const struct slot *slot) { return slot->plan; }

void handle_set_plan(struct slot *slot, struct plan *plan)
{
    plan_free(slot->plan);
    slot->plan = plan;
}

void handle_count_step(struct slot *slot) { slot->steps++; }

int64_t handle_take_steps(struct slot *slot)
{
    int64_t steps = slot->steps;
    slot->steps = 0;
    return steps;
}

struct staging *handle_staging(struct slot *slot) { return &slot->staging; }

struct callback *handle_callback(const struct slot *slot) { return slot->callback; }

void handle_set_callback(struct slot *slot, struct callback *callback) { slot->callback = callback; }

void handle_leave(struct slot *slot)
{
    slot->left = 1;
    while (slot->depth > 0)
        handle_unlock(slot);
}

void handle_retire(struct slot *slot)
{
    handle_set_plan(slot, NULL);
    staging_clear(&slot->staging);
    slot->steps = 0;
    slot->live = 0;
    slot->left = 0;
    int reusable = slot->generation < MAX_GENERATION;
    handle_unlock(slot);
    if (!reusable)
        return;
    pthread_mutex_lock(&table_lock);
    slot->next_free = free_slots;
    free_slots = slot;
    pthread_mutex_unlock(&table_lock);
}

void handle_before_fork(void)
{
    pthread_mutex_lock(&table_lock);
    for (int i = 0; i < slot_count; i++) {
        struct slot *slot = atomic_load(&slots[i]);
        slot->held = pthread_mutex_trylock(&slot->lock) == 0;
    }
}

void handle_after_fork(int in_child)
{
    for (int i = 0; i < slot_count; i++) {
        struct slot *slot = atomic_load(&slots[i]);
        if (in_child) {
            slot->lost |= !slot->held;
            make_lock(&slot->lock); /* its owner was a thread of the parent, even if that forked */
        } else if (slot->held)
            pthread_mutex_unlock(&slot->lock);
    }
    pthread_mutex_unlock(&table_lock);
}

void handle_wait_for_all(double seconds)
{
    const struct timespec millisecond = {0, 1000000};
    pthread_mutex_lock(&table_lock);
    int count = slot_count;
    pthread_mutex_unlock(&table_lock);
    for (int i = 0; i < count; i++) {
        struct slot *slot = atomic_load(&slots[i]);
        /* With a limit: a call may wait for the very thread that asks, in a function of the host's. */
        for (; seconds > 0; seconds -= 1e-3) {
            if (pthread_mutex_trylock(&slot->lock) == 0) {
                pthread_mutex_unlock(&slot->lock);
                break;
            }
            nanosleep(&millisecond, NULL);
        }
    }
}
