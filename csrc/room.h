/* What a process may still take, where torch would end it for having taken too much. */
#ifndef OPTPLUG_ROOM_H
#define OPTPLUG_ROOM_H

/* Return how many threads the process could make now, `wanted` at the most. */
int room_for_threads(int wanted);

#endif
