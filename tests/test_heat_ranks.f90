!> The equations of examples/heat_inverse_ranks.f90: strips give the misfit of the whole plate, and the adjoint its
!> gradient, across the ranks' borders too.
program test_heat_ranks
  use, intrinsic :: iso_fortran_env, only: real64
  use heat, only: n, true_field
  use heat_misfit, only: measure
  use heat_ranks, only: add_roughness, cut, first, last, misfit_and_gradient
  use mpi_f08, only: MPI_Allreduce, MPI_Comm_rank, MPI_COMM_SELF, MPI_COMM_WORLD, MPI_DOUBLE_PRECISION, MPI_Finalize, &
    MPI_Init, MPI_SUM
  use optplug, only: optimizer
  use optplug_mpi, only: distribute
  implicit none
  type(optimizer) :: opt
  real(real64), allocatable, target :: m(:), gradient(:)
  real(real64) :: truth(n, n), loss, error, alone, whole
  logical :: more
  integer :: rank

  call MPI_Init()
  call MPI_Comm_rank(MPI_COMM_WORLD, rank)
  call measure()
  truth = 0.5_real64 * true_field(n)
  if (.not. cut(MPI_COMM_SELF)) error stop "one rank has no strip"
  call evaluate()
  alone = loss
  if (.not. cut(MPI_COMM_WORLD)) error stop "so many ranks have no strips"
  call evaluate()
  call MPI_Allreduce(loss, whole, 1, MPI_DOUBLE_PRECISION, MPI_SUM, MPI_COMM_WORLD)
  if (abs(whole - alone) > 1e-12_real64 * alone) error stop "strips have another misfit than the plate"

  call opt%create("SGD(lr=0.1)")
  call distribute(opt, "Shard(0)", MPI_COMM_WORLD)
  call opt%bind("m", m, gradient)
  do
    call opt%check_gradient_iterate(loss, more, error)
    if (.not. more) exit
    call misfit_and_gradient(m, loss, gradient)
    call add_roughness(m, 0.03_real64, loss, gradient)
  end do
  if (error > 1e-6_real64) error stop "the gradient is inexact"
  if (rank == 0) print "(a, es8.1)", "ok: the gradient is right to ", error
  call MPI_Finalize()

contains

  !> This rank's part of the loss, of half the true field.
  subroutine evaluate()
    if (allocated(m)) deallocate (m, gradient)
    m = reshape(truth(:, first:last), [n * (last - first + 1)])
    allocate (gradient, mold=m)
    call misfit_and_gradient(m, loss, gradient)
    call add_roughness(m, 0.03_real64, loss, gradient)
  end subroutine
end program
