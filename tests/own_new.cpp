// A host with operators new and delete of its own, whose memory nobody else can free.
#include <cstdio>
#include <cstdlib>
#include <new>

#include <optplug.hpp>

constexpr std::size_t head = 64;

void *operator new(std::size_t size)
{
    if (char *block = static_cast<char *>(std::malloc(head + size)))
        return block + head;
    throw std::bad_alloc();
}

void operator delete(void *memory) noexcept
{
    if (memory)
        std::free(static_cast<char *>(memory) - head);
}

void operator delete(void *memory, std::size_t) noexcept { operator delete(memory); }

int main()
{
    double w[] = {1, 2}, dw[] = {2, 4};
    optplug::Optimizer opt("SGD(lr=0.5)");
    opt.bind("w", w, dw);
    for (int i = 0; i < 3; i++)
        opt.step();
    std::printf("%g %g\n%s", w[0], w[1], opt_describe(0));
}
