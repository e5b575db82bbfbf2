/* Ranks over the host's own MPI, by optplug_mpi.h: numbers, agreement, errors, and what a clip costs.
 * With OPTPLUG_MPI_MOST small it goes piece by piece. */
#include <math.h>
#include <optplug_mpi.h>

#include "check.h"

enum { N = 1000, STEPS = 20 };

static int rank, ranks;
static MPI_Comm half; /* each optimizer may have a communicator of its own */

static void same_everywhere(const double *w, int n)
{
    double low[N], high[N];
    CHECK(MPI_Allreduce(w, low, n, MPI_DOUBLE, MPI_MIN, MPI_COMM_WORLD) == MPI_SUCCESS);
    CHECK(MPI_Allreduce(w, high, n, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD) == MPI_SUCCESS);
    CHECK(memcmp(low, high, n * sizeof *w) == 0);
}

static void replicated(void)
{
    static double w[N], dw[N], alone[N];
    int opt = opt_create("Adam(lr=0.1)"), reference = opt_create("Adam(lr=0.1)");
    CHECK(opt > 0 && reference > 0);
    CHECK(opt_distribute_mpi(opt, "Replicate(), Partial('sum')", MPI_COMM_WORLD) == OPT_OK);
    CHECK(opt_bind(opt, "w", "float64", N, w, dw) == OPT_OK);
    static double sum[N];
    CHECK(opt_bind(reference, "w", "float64", N, alone, sum) == OPT_OK);
    for (int step = 0; step < STEPS; step++) {
        for (int i = 0; i < N; i++) {
            dw[i] = (i + 1) * (rank + 1); /* whole numbers, so that sums in any order are the same */
            sum[i] = (i + 1) * (ranks * (ranks + 1) / 2);
        }
        CHECK(opt_step(opt) == OPT_OK);
        CHECK(opt_step(reference) == OPT_OK);
    }
    CHECK(memcmp(w, alone, sizeof w) == 0);
    same_everywhere(w, N);
    CHECK(opt_free(opt) == OPT_OK && opt_free(reference) == OPT_OK);
}

struct part {
    int n, first;
    double *w, *dw;
};

static int quartic(void *user, double *loss)
{
    struct part *p = user;
    *loss = 0;
    for (int i = 0; i < p->n; i++) {
        double scale = 1 + 49.0 * (p->first + i) / N, x = p->w[i];
        p->dw[i] = scale * x + 0.1 * x * x * x;
        *loss += 0.5 * scale * x * x + 0.025 * x * x * x * x;
    }
    return 0;
}

static void sharded(void)
{
    static double whole[N], dwhole[N], w[N], dw[N];
    struct part all = {N, 0, whole, dwhole};
    struct part mine = {rank ? N / ranks : N - (ranks - 1) * (N / ranks), 0, w, dw};
    mine.first = rank ? N - (ranks - rank) * (N / ranks) : 0;
    for (int i = 0; i < N; i++)
        whole[i] = sin(i);
    memcpy(w, whole + mine.first, mine.n * sizeof *w);
    const char *spec = "LBFGS(line_search_fn='strong_wolfe', max_iter=8, history_size=5)";
    int opt = opt_create(spec), reference = opt_create(spec);
    double loss[2];
    CHECK(opt > 0 && reference > 0);
    CHECK(opt_distribute_mpi(opt, "Shard(0)", MPI_COMM_WORLD) == OPT_OK);
    CHECK(opt_bind(opt, "w", "float64", mine.n, w, dw) == OPT_OK);
    CHECK(opt_bind(reference, "w", "float64", N, whole, dwhole) == OPT_OK);
    for (int step = 0; step < 3; step++) {
        CHECK(opt_step_closure(opt, quartic, &mine, &loss[0]) == OPT_OK);
        CHECK(opt_step_closure(reference, quartic, &all, &loss[1]) == OPT_OK);
        CHECK(fabs(loss[0] - loss[1]) <= 1e-10 * fabs(loss[1]) + 1e-18);
        same_everywhere(loss, 1);
    }
    for (int i = 0; i < mine.n; i++)
        CHECK(fabs(w[i] - whole[mine.first + i]) <= 1e-10);
    CHECK(opt_free(opt) == OPT_OK && opt_free(reference) == OPT_OK);
}

static void disagreeing(void)
{
    double w = 0, dw = 1;
    int opt = opt_create(rank == ranks - 1 ? "SGD(lr=0.2)" : "SGD(lr=0.1)");
    CHECK(opt > 0 && opt_distribute_mpi(opt, "Replicate()", MPI_COMM_WORLD) == OPT_OK);
    CHECK(opt_bind(opt, "w", "float64", 1, &w, &dw) == OPT_OK);
    CHECK(opt_step(opt) == OPT_EINVAL);
    CHECK(strstr(opt_error(), "ranks differ: spec is 'SGD(lr=0.2)' on rank"));
    CHECK(w == 0);
    CHECK(opt_free(opt) == OPT_OK);
}

static int fails(void *user, double *loss)
{
    (void)user;
    *loss = 1;
    return rank == ranks - 1 ? OPT_ENONFINITE : 0;
}

static void failing(void)
{
    double w = 0, dw = 1;
    int opt = opt_create("SGD(lr=0.1)");
    CHECK(opt > 0 && opt_distribute_mpi(opt, "Shard(0)", MPI_COMM_WORLD) == OPT_OK);
    CHECK(opt_bind(opt, "w", "float64", 1, &w, &dw) == OPT_OK);
    CHECK(opt_step_closure(opt, fails, NULL, NULL) == OPT_ENONFINITE);
    CHECK(strstr(opt_error(), "the host's closure failed with status -7"));
    CHECK(w == 0);
    CHECK(opt_free(opt) == OPT_OK);
}

/* A table of which each rank has columns is saved whole; rank 0 finds that, and all find their own again. */
static void saved_in_blocks(void)
{
    enum { ROWS = 5, COLUMNS = 4 };
    double w[ROWS * COLUMNS], dw[ROWS * COLUMNS] = {0};
    const int64_t shape[] = {ROWS, COLUMNS}, grid[] = {ROWS, COLUMNS * ranks}, offset[] = {0, COLUMNS * rank};
    for (int i = 0; i < ROWS * COLUMNS; i++)
        w[i] = i / COLUMNS * COLUMNS * ranks + COLUMNS * rank + i % COLUMNS;
    int opt = opt_create("Adam(lr=0.1)");
    CHECK(opt > 0 && opt_distribute_mpi(opt, "Shard(0)", MPI_COMM_WORLD) == OPT_OK);
    CHECK(opt_bind(opt, "w", "float64", ROWS * COLUMNS, w, dw) == OPT_OK);
    CHECK(opt_bind_block(opt, "w", 2, grid, offset, NULL) == OPT_EINVAL);
    CHECK(opt_bind_block(opt, NULL, 2, grid, offset, shape) == OPT_EINVAL);
    CHECK(opt_bind_block(opt, "w", 0, grid, offset, shape) == OPT_EINVAL);
    CHECK(opt_bind_block(opt, "w", 2, NULL, offset, shape) == OPT_EINVAL);
    CHECK(opt_bind_block(opt, "w", 2, grid, NULL, shape) == OPT_EINVAL);
    CHECK(opt_bind_block(opt, "w", 2, grid, offset, shape) == OPT_OK);
    CHECK(opt_checkpoint(opt, "parameters=True") == OPT_OK);
    CHECK(opt_step(opt) == OPT_OK);
    const char *path = "test_mpi_ranks.pt";
    CHECK(opt_save(opt, path) == OPT_OK);
    if (rank == 0) {
        static double whole[N], dwhole[N];
        int one = opt_create("Adam(lr=0.1)");
        CHECK(one > 0 && opt_bind(one, "w", "float64", ROWS * COLUMNS * ranks, whole, dwhole) == OPT_OK);
        CHECK(opt_checkpoint(one, "parameters=True") == OPT_OK);
        CHECK(opt_load(one, path) == OPT_OK);
        for (int i = 0; i < ROWS * COLUMNS * ranks; i++)
            CHECK(whole[i] == i);
        CHECK(opt_free(one) == OPT_OK);
    }
    double before[ROWS * COLUMNS];
    memcpy(before, w, sizeof w);
    memset(w, 0, sizeof w);
    CHECK(opt_load(opt, path) == OPT_OK);
    CHECK(memcmp(w, before, sizeof w) == 0);
    CHECK(opt_free(opt) == OPT_OK && MPI_Barrier(MPI_COMM_WORLD) == MPI_SUCCESS);
    CHECK(rank || remove(path) == 0);
}

static void an_ensemble(void)
{
    double w = 0, dw = rank;
    int opt = opt_create("SGD(lr=1)");
    CHECK(MPI_Comm_split(MPI_COMM_WORLD, rank % 2, rank, &half) == MPI_SUCCESS);
    CHECK(opt > 0 && opt_distribute_mpi(opt, "Replicate(), Partial('sum')", half) == OPT_OK);
    CHECK(opt_bind(opt, "w", "float64", 1, &w, &dw) == OPT_OK);
    CHECK(opt_step(opt) == OPT_OK);
    double sum = 0;
    for (int i = rank % 2; i < ranks; i += 2)
        sum += i;
    CHECK(w == -sum);
    CHECK(opt_free(opt) == OPT_OK && MPI_Comm_free(&half) == MPI_SUCCESS);
}

static void costs(void)
{
    double w[50] = {0}, dw[50], best = 1, norm;
    int opt = opt_create("SGD(lr=0.1)");
    CHECK(opt > 0 && opt_distribute_mpi(opt, "Shard(0)", MPI_COMM_WORLD) == OPT_OK);
    CHECK(opt_bind(opt, "w", "float64", 50, w, dw) == OPT_OK);
    for (int i = 0; i < 50; i++)
        dw[i] = 1;
    for (int i = 0; i < 4; i++) /* from then on without Python */
        CHECK(opt_clip_grad_norm(opt, 1000, 2, 0, NULL) == OPT_OK && opt_step(opt) == OPT_OK);
    CHECK(opt_clip_grad_norm(opt, 1, 2, 0, &norm) == OPT_OK);
    CHECK(fabs(norm - sqrt(50 * ranks)) < 1e-12);
    for (int i = 0; i < 300; i++) {
        double start = MPI_Wtime();
        CHECK(opt_clip_grad_norm(opt, 1, 2, 0, NULL) == OPT_OK);
        double took = MPI_Wtime() - start;
        best = took < best ? took : best;
    }
    if (rank == 0)
        printf("a clip of 50 values over %d ranks: %.1f us\n", ranks, 1e6 * best);
    CHECK(opt_free(opt) == OPT_OK);
}

int main(int argc, char **argv)
{
    CHECK(MPI_Init(&argc, &argv) == MPI_SUCCESS);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    CHECK(opt_init("num_threads=1") == OPT_OK);
    replicated();
    sharded();
    disagreeing();
    failing();
    saved_in_blocks();
    an_ensemble();
    costs();
    return MPI_Finalize() != MPI_SUCCESS;
}
