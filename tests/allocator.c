/* An allocator for LD_PRELOAD whose memory the C library's free takes for garbage; with PLAIN one that only
 * counts, and hands on to the C library's. */
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

void *__libc_memalign(size_t alignment, size_t size);
void __libc_free(void *memory);

#ifdef PLAIN
enum { HEAD = 0 };
#else
enum { HEAD = 64 };
#endif

static _Atomic long calls;

/* The block and its size stand before what is given out. */
struct head {
    void *block;
    size_t size;
};

static void *allocate(size_t alignment, size_t size)
{
    calls++;
    if (HEAD == 0)
        return __libc_memalign(alignment, size);
    if (alignment < HEAD)
        alignment = HEAD;
    char *block = size < SIZE_MAX - alignment ? __libc_memalign(alignment, alignment + size) : NULL;
    if (!block)
        return NULL;
    ((struct head *)(block + alignment))[-1] = (struct head){block, size};
    return block + alignment;
}

void *malloc(size_t size) { return allocate(16, size); }

void free(void *memory)
{
    if (memory)
        __libc_free(HEAD ? ((struct head *)memory)[-1].block : memory);
}

void *calloc(size_t count, size_t size)
{
    if (size && count > SIZE_MAX / size)
        return NULL;
    void *memory = allocate(16, count * size);
    return memory ? memset(memory, 0, count * size) : NULL;
}

#ifndef PLAIN
void *realloc(void *memory, size_t size)
{
    if (!memory)
        return malloc(size);
    size_t before = ((struct head *)memory)[-1].size;
    void *other = malloc(size);
    if (!other)
        return NULL;
    memcpy(other, memory, before < size ? before : size);
    free(memory);
    return other;
}

size_t malloc_usable_size(void *memory) { return memory ? ((struct head *)memory)[-1].size : 0; }
#endif

void *memalign(size_t alignment, size_t size) { return allocate(alignment, size); }
void *aligned_alloc(size_t alignment, size_t size) { return allocate(alignment, size); }
void *valloc(size_t size) { return allocate(4096, size); }
void *pvalloc(size_t size) { return allocate(4096, (size + 4095) / 4096 * 4096); }

int posix_memalign(void **memory, size_t alignment, size_t size)
{
    void *given = allocate(alignment, size);
    if (!given)
        return ENOMEM;
    *memory = given;
    return 0;
}
