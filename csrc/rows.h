/* Rows of numbers in the memory of torch's tensors: their scalar products, as torch has them, and the loops that
 * are made of those. */
#ifndef OPTPLUG_ROWS_H
#define OPTPLUG_ROWS_H

#include "bridge.h"

/* `optplug_host`'s. */
double rows_dot(int bytes, int64_t n, const void *a, const void *b);
double rows_largest(int bytes, int64_t n, const void *a);
void rows_take(const optplug_parts *parts, void *row);
void rows_put(const optplug_parts *parts, const void *row);
void rows_copy(const optplug_parts *from, const optplug_parts *to);
int rows_move(const optplug_parts *parts, int add, const void *row, double factor);
int rows_multiply(const optplug_inverse *by, void *row);

#endif
