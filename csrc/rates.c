#include "rates.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

void rates_free(struct rates *rates)
{
    free(rates->all);
    free(rates->places);
    memset(rates, 0, sizeof *rates);
}

void rates_take(struct rates *rates, const optplug_plan *stated, double *const *scalars)
{
    rates_free(rates);
    int places = 0;
    for (int i = 0; i < stated->rate_count; i++)
        places += stated->rates[i].count;
    if (places == 0)
        return;
    rates->all = calloc((size_t)stated->rate_count, sizeof *rates->all);
    rates->places = calloc((size_t)places, sizeof *rates->places);
    if (!rates->all || !rates->places) {
        rates_free(rates);
        return;
    }
    double **next = rates->places;
    for (int i = 0; i < stated->rate_count; i++) {
        const optplug_rate *given = &stated->rates[i];
        if (strlen(given->name) >= sizeof rates->all->name)
            continue;
        struct rate *rate = &rates->all[rates->count++];
        rate->group = given->group;
        strcpy(rate->name, given->name);
        rate->low = given->low;
        rate->high = given->high;
        rate->count = given->count;
        rate->places = next;
        for (int j = 0; j < given->count; j++)
            *next++ = scalars[given->places[j]];
    }
}

int rates_set(struct rates *rates, int group, const char *name, double value)
{
    for (int i = 0; i < rates->count; i++) {
        struct rate *rate = &rates->all[i];
        if (rate->group != group || strcmp(rate->name, name) != 0)
            continue;
        if (!isfinite(value) || value < rate->low || value > rate->high)
            return 0;
        for (int j = 0; j < rate->count; j++)
            *rate->places[j] = value;
        rate->value = value;
        rate->change = ++rates->changes;
        return 1;
    }
    return 0;
}

/* Changes of one group and of all groups overwrite each other, so that Python hears of them in their order. */
struct rate *rates_unknown(const struct rates *rates)
{
    struct rate *first = NULL;
    for (int i = 0; rates->changes && i < rates->count; i++) {
        struct rate *rate = &rates->all[i];
        if (rate->change && (!first || rate->change < first->change))
            first = rate;
    }
    return first;
}
