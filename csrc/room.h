/* What a process may still take, where torch would end it for having taken too much. */
#ifndef OPTPLUG_ROOM_H
#define OPTPLUG_ROOM_H

/* Return how many threads the process could make now, `wanted` at the most.  Makes them, for a moment. */
int room_for_threads(int wanted);

/* Tell at little cost whether so many threads are no question at all. */
int room_is_plenty(int wanted);

#endif
