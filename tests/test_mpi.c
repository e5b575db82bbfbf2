/* Two ranks under mpirun that add up their gradients and step the same optimizer; MPI starts after our Python,
 * and before it in test_mpi_ranks.f90. */
#include <math.h>
#include <mpi.h>

#include "check.h"

enum { N = 1000, STEPS = 20 };

int main(int argc, char **argv)
{
    int rank, ranks;
    CHECK(opt_init(NULL) == OPT_OK);
    CHECK(MPI_Init(&argc, &argv) == MPI_SUCCESS);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    CHECK(ranks == 2);

    static double w[N], alone[N], mine[N], sum[N];
    int opt = opt_create("Adam(lr=0.1)"), reference = opt_create("Adam(lr=0.1)");
    CHECK(opt > 0 && opt_bind(opt, "w", "float64", N, w, sum) == OPT_OK);
    CHECK(reference > 0 && opt_bind(reference, "w", "float64", N, alone, sum) == OPT_OK);
    for (int step = 0; step < STEPS; step++) {
        for (int i = 0; i < N; i++) /* the sum's is (w - i)^2 */
            mine[i] = 2 * (rank ? w[i] : -i);
        CHECK(MPI_Allreduce(mine, sum, N, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD) == MPI_SUCCESS);
        CHECK(opt_step(opt) == OPT_OK);
        CHECK(opt_step(reference) == OPT_OK);
    }
    CHECK(memcmp(w, alone, sizeof w) == 0 && w[1] > 0.5);
    static double theirs[N];
    CHECK(MPI_Sendrecv(w, N, MPI_DOUBLE, !rank, 0, theirs, N, MPI_DOUBLE, !rank, 0, MPI_COMM_WORLD,
                       MPI_STATUS_IGNORE) == MPI_SUCCESS);
    CHECK(memcmp(w, theirs, sizeof w) == 0);
    CHECK(opt_free(opt) == OPT_OK && opt_free(reference) == OPT_OK);
    return MPI_Finalize() != MPI_SUCCESS;
}
