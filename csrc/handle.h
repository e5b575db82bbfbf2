/* Handles: the ints that name optimizers, each with the lock that puts its calls in a row. */
#ifndef OPTPLUG_HANDLE_H
#define OPTPLUG_HANDLE_H

#include <stdint.h>

struct callback;
struct plan;
struct slot;
struct staging;

/* Reserve a handle, its slot locked, so that nobody sees it before handle_unlock; negative, with an
 * error recorded, if there is none left. */
int handle_new(struct slot **locked);

/* Find a live handle and lock its slot, waiting for a call of another thread to end.  A thread that has it
 * locked, and is in a function of the host's now, may lock it once more to ask.  One whose function has been
 * left may be locked to free it. */
enum handle_use { HANDLE_CHANGE, HANDLE_ASK, HANDLE_FREE };
int handle_lock(int handle, enum handle_use use, struct slot **locked);

void handle_unlock(struct slot *slot);

/* The plan of a locked slot, which owns it; NULL where Python makes the steps. */
struct plan *handle_plan(const struct slot *slot);
void handle_set_plan(struct slot *slot, struct plan *plan);

/* Count a step that the plan of a locked slot has made; return how many there were since the last time. */
void handle_count_step(struct slot *slot);
int64_t handle_take_steps(struct slot *slot);

/* The parameters of a locked slot that have no arrays but in a step. */
struct staging *handle_staging(struct slot *slot);

/* What a slot has for functions of the host's; NULL at first. */
struct callback *handle_callback(const struct slot *slot);
void handle_set_callback(struct slot *slot, struct callback *callback);

/* Unlock a slot whose call has been left in the middle.  Call in the thread that made it. */
void handle_leave(struct slot *slot);

/* End the handle of a locked slot and unlock it. */
void handle_retire(struct slot *slot);

/* Keep all handles as they are while the process forks.  In the child, those that other threads were
 * calling are lost: to lock them is an error. */
void handle_before_fork(void);
void handle_after_fork(int in_child);

/* Wait until no call is running, for so many seconds in all. */
void handle_wait_for_all(double seconds);

#endif
