/* A host for the tests that vary what is around it: it makes one step, says "stepped" or the status and
 * the error, and in any case lives to the end. */
#include <stdio.h>

#include <optplug.h>

int main(int argc, char **argv)
{
    double w[] = {1, 2}, dw[] = {2, 4};
    int status = argc > 1 ? opt_init(argv[1]) : OPT_OK;
    int opt = status < 0 ? status : opt_create("SGD(lr=0.5)");
    if (opt < 0 || opt_bind(opt, "w", "float64", 2, w, dw) < 0 || opt_step(opt) < 0 || w[0] != 0)
        printf("%d %s\n", opt, opt_error());
    else
        printf("stepped\n%s", opt_describe(0));
    return 0;
}
