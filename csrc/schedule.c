#include "schedule.h"

#include <stdlib.h>

#include "record.h"

/* A hyperparameter: where the schedulers' number is, and where the plan has it. */
struct moved {
    const double *from;
    double *to;
};

struct schedule {
    struct records *records;
    int ahead;
    int count;
    struct moved moved[];
};

struct schedule *schedule_make(const optplug_schedulers *stated, double *const *scalars)
{
    if (!stated->steps)
        return NULL;
    struct schedule *schedule = calloc(1, sizeof *schedule + (size_t)stated->count * sizeof *schedule->moved);
    if (!schedule)
        return NULL;
    schedule->records = records_make(stated->steps);
    if (!schedule->records) {
        free(schedule);
        return NULL;
    }
    schedule->count = stated->count;
    for (int i = 0; i < stated->count; i++) {
        const optplug_tensor *number = records_list(schedule->records, stated->lists[i]);
        schedule->moved[i] = (struct moved){number->data, scalars[stated->places[i]]};
    }
    return schedule;
}

void schedule_free(struct schedule *schedule)
{
    if (!schedule)
        return;
    records_free(schedule->records);
    free(schedule);
}

int schedule_step(struct schedule *schedule)
{
    if (!schedule || !records_prepare(schedule->records, NULL))
        return 0;
    records_run(schedule->records);
    for (int i = 0; i < schedule->count; i++)
        *schedule->moved[i].to = *schedule->moved[i].from;
    schedule->ahead = 1;
    return 1;
}

int schedule_is_ahead(const struct schedule *schedule) { return schedule && schedule->ahead; }

void schedule_is_known(struct schedule *schedule)
{
    if (schedule)
        schedule->ahead = 0;
}
