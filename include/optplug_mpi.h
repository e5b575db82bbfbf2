/* optplug over your program's own MPI: compile this with your mpicc.  liboptplug itself knows no MPI, so any
 * will do.
 *
 *     #include <optplug_mpi.h>
 *
 *     int opt = opt_create("Adam(lr=1e-3)");
 *     opt_distribute_mpi(opt, "Replicate()", MPI_COMM_WORLD);
 *     opt_bind(opt, "w", "float64", n, w, dw);      // dw: the gradient of this rank's data
 *
 * MPI must be initialized, with MPI_THREAD_FUNNELED if only its main thread calls optplug. */
#ifndef OPTPLUG_MPI_H
#define OPTPLUG_MPI_H

#include <limits.h>
#include <mpi.h>
#include <stdlib.h>
#include <string.h>

#include "optplug.h"

#ifndef OPTPLUG_MPI_MOST
#define OPTPLUG_MPI_MOST INT_MAX /* values that one call of MPI's may take */
#endif

/* Do a collective over the communicator that `user` points to: an optplug_collective. */
static inline int optplug_mpi_collective(void *user, const char *what, const char *dtype, const void *send,
                                         void *receive, int64_t count)
{
    MPI_Comm comm = *(MPI_Comm *)user;
    int is_gather = strcmp(what, "all_gather") == 0, is_double = strcmp(dtype, "float64") == 0;
    MPI_Datatype type = is_gather ? MPI_BYTE : is_double ? MPI_DOUBLE : MPI_FLOAT;
    int64_t size = is_gather ? 1 : is_double ? 8 : 4;
    int rank, ranks, failed = 0;
    if (count <= OPTPLUG_MPI_MOST)
        return (is_gather ? MPI_Allgather(send, (int)count, type, receive, (int)count, type, comm)
                          : MPI_Reduce_scatter_block(send, receive, (int)count, type, MPI_SUM, comm)) != 0
                   ? -1
                   : 0;
    /* Piece by piece: MPI counts with int before version 4. */
    if (MPI_Comm_rank(comm, &rank) != MPI_SUCCESS || MPI_Comm_size(comm, &ranks) != MPI_SUCCESS)
        return -1;
    if (is_gather)
        memcpy((char *)receive + rank * count * size, send, (size_t)(count * size));
    for (int root = 0; root < ranks && !failed; root++)
        for (int64_t done = 0, n; done < count && !failed; done += n) {
            n = count - done < OPTPLUG_MPI_MOST ? count - done : OPTPLUG_MPI_MOST;
            int64_t at = (root * count + done) * size;
            failed = is_gather ? MPI_Bcast((char *)receive + at, (int)n, type, root, comm)
                               : MPI_Reduce((const char *)send + at, (char *)receive + done * size, (int)n,
                                            type, MPI_SUM, root, comm);
        }
    return failed ? -1 : 0;
}

/* Forget a communicator, which MPI does when it is freed, and all of them at MPI_Finalize. */
static inline int optplug_mpi_delete(MPI_Comm comm, int key, void *kept, void *unused)
{
    (void)comm, (void)key, (void)unused;
    free(kept);
    return MPI_SUCCESS;
}

/* opt_distribute over a communicator, which must outlive the optimizer. */
static inline int optplug_distribute_mpi(int opt, const char *placement, MPI_Comm comm)
{
    static int key = MPI_KEYVAL_INVALID;
    MPI_Comm *kept = NULL;
    int rank, size, is_there;
    if (MPI_Comm_rank(comm, &rank) != MPI_SUCCESS || MPI_Comm_size(comm, &size) != MPI_SUCCESS)
        return OPTPLUG_EINVAL;
    if (key == MPI_KEYVAL_INVALID &&
        MPI_Comm_create_keyval(MPI_COMM_NULL_COPY_FN, optplug_mpi_delete, &key, NULL) != MPI_SUCCESS)
        return OPTPLUG_ERUNTIME;
    if (MPI_Comm_get_attr(comm, key, &kept, &is_there) != MPI_SUCCESS)
        return OPTPLUG_ERUNTIME;
    if (!is_there) {
        kept = (MPI_Comm *)malloc(sizeof *kept);
        if (!kept)
            return OPTPLUG_ENOMEM;
        *kept = comm;
        if (MPI_Comm_set_attr(comm, key, kept) != MPI_SUCCESS) {
            free(kept);
            return OPTPLUG_ERUNTIME;
        }
    }
    return optplug_distribute(opt, placement, optplug_mpi_collective, kept, rank, size);
}

#ifndef OPTPLUG_NO_SHORT_NAMES
#define opt_distribute_mpi optplug_distribute_mpi
#endif

#endif
