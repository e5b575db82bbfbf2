/* A C host that starts optplug and says what it got: how `python -m optplug doctor` sees what a
 * program that is no Python would get. */
#include <stdio.h>

#include "optplug.h"

int main(void)
{
    if (opt_init(NULL) < 0) {
        printf("error: %s\n", opt_error());
        return 1;
    }
    const char *text = opt_describe(0);
    printf("%s", text ? text : opt_error());
    return text ? 0 : 1;
}
