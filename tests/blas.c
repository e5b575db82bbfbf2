/* As much of a BLAS as a host must have for its own to be noticed, with integers of INTEGER; its products
 * say by a zero that they are not torch's. */
#include <stdint.h>

void dgemm_(const char *transa, const char *transb, const INTEGER *m, const INTEGER *n, const INTEGER *k,
            const double *alpha, const double *a, const INTEGER *lda, const double *b, const INTEGER *ldb,
            const double *beta, double *c, const INTEGER *ldc)
{
    (void)transa, (void)transb, (void)k, (void)alpha, (void)a, (void)lda, (void)b, (void)ldb, (void)beta;
    for (INTEGER j = 0; j < *n; j++)
        for (INTEGER i = 0; i < *m; i++)
            c[j * *ldc + i] = 0;
}

double dasum_(const INTEGER *n, const double *x, const INTEGER *step)
{
    double sum = 0;
    for (INTEGER i = 0; i < *n && *step > 0; i++)
        sum += x[i * *step] < 0 ? -x[i * *step] : x[i * *step];
    return sum;
}
