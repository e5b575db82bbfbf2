/* A host that is linked to a BLAS of its own, whose integers have 64 bits: torch, which asks for dgemm_ as
 * well and passes 32, must not get that one. */
#include "check.h"

void dgemm_(const char *transa, const char *transb, const int64_t *m, const int64_t *n, const int64_t *k,
            const double *alpha, const double *a, const int64_t *lda, const double *b, const int64_t *ldb,
            const double *beta, double *c, const int64_t *ldc);

enum { N = 64 };

/* With 64-bit integers, whose upper halves a BLAS of 32 would not see. */
static void the_hosts_own_products_are_right(void)
{
    static double a[N * N], b[N * N], c[N * N];
    const int64_t n = N;
    const double one = 1, zero = 0;
    for (int i = 0; i < N * N; i++)
        a[i] = i % 3, b[i] = i / N == i % N ? 2 : 0;
    dgemm_("N", "N", &n, &n, &n, &one, a, &n, b, &n, &zero, c, &n);
    for (int i = 0; i < N * N; i++)
        CHECK(c[i] == 2 * a[i]);
}

/* Muon is matrix products, LBFGS scalar ones; both twice, and alike. */
static void products_are_torchs(const char *spec)
{
    static double w[2][N * N], dw[N * N];
    const int64_t shape[] = {N, N};
    for (int i = 0; i < N * N; i++)
        dw[i] = (i % 17 - 8) / 8.0;
    for (int i = 0; i < 2; i++) {
        int opt = opt_create(spec);
        CHECK(opt > 0);
        CHECK(opt_bind_nd(opt, "w", "float64", "cpu", 2, shape, w[i], NULL, dw, NULL) == OPT_OK);
        if (strncmp(spec, "LBFGS", 5) == 0)
            for (int status = opt_iterate(opt, 1); status != OPT_DONE; status = opt_iterate(opt, 1))
                CHECK(status == OPT_EVALUATE);
        else
            CHECK(opt_step(opt) == OPT_OK);
        CHECK(opt_free(opt) == OPT_OK);
    }
    CHECK(w[0][0] != 0 && memcmp(w[0], w[1], sizeof w[0]) == 0);
}

int main(void)
{
    the_hosts_own_products_are_right();
    products_are_torchs("Muon(lr=0.1)");
    products_are_torchs("LBFGS(lr=0.1)");
    the_hosts_own_products_are_right();
    return 0;
}
