/* How a public function is defined. */
#ifndef OPTPLUG_API_H
#define OPTPLUG_API_H

/* Before the definition of opt_name: it is seen from outside, and optplug_name is the same function, of the
 * type that the header declares, or the compiler says so.  macOS has no such aliases: the linker makes them
 * there (library.cmake). */
#define VISIBLE __attribute__((visibility("default")))
#ifdef __APPLE__
#define API(name) VISIBLE
#else
#define API(name)                                                                                            \
    extern VISIBLE __typeof__(opt_##name) optplug_##name __attribute__((alias("opt_" #name)));               \
    VISIBLE
#endif

#endif
