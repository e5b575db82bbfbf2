!> Find the conductivity of a plate on many ranks, each with a strip of it, with LBFGS after Adam.
!>
!>     mpiexec -n 4 heat_inverse_ranks [field.csv [losses.csv [restart.pt [Adam's steps [LBFGS's]]]]]
!>
!> Where the third file is there, LBFGS goes on from it, on as many ranks as there are now.
!> The equations on strips and their adjoint are in heat_ranks.f90.  An optimizer over "Shard(0)" has this rank's
!> part of the field, of its gradient and of the loss; what it does is what it would do with the whole.
program heat_inverse_ranks
  use, intrinsic :: iso_fortran_env, only: output_unit, real64
  use heat, only: n, true_field
  use heat_misfit, only: measure
  use heat_ranks, only: add_roughness, cut, first, last, misfit_and_gradient
  use mpi_f08, only: MPI_Allreduce, MPI_Comm_rank, MPI_Comm_size, MPI_COMM_WORLD, MPI_DOUBLE_PRECISION, MPI_Finalize, &
    MPI_Init, MPI_SUM
  use optplug, only: opt_init, optimizer
  use optplug_mpi, only: distribute
  implicit none

  real(real64), parameter :: smoothing = 0.03_real64
  real(real64), allocatable, target :: m(:), gradient(:)
  real(real64) :: truth(n, n), misfit, loss, error
  integer :: i, rank, ranks, evaluations = 0, losses = 0, steps(2) = [40, 8]
  logical :: goes_on
  character(200) :: path, restart, given

  call MPI_Init()
  call MPI_Comm_rank(MPI_COMM_WORLD, rank)
  call MPI_Comm_size(MPI_COMM_WORLD, ranks)
  if (.not. cut(MPI_COMM_WORLD)) error stop "heat_inverse_ranks: the plate has too few columns for so many ranks"
  call measure()
  truth = true_field(n)
  call get_command_argument(2, path)
  if (rank == 0 .and. path /= "") then
    open (newunit=losses, file=path, status="replace", action="write")
    write (losses, "(a)") "evaluation,Adam,LBFGS"
  end if

  allocate (m(n * (last - first + 1)), source=0.0_real64)
  allocate (gradient, mold=m)
  call opt_init("num_threads=1")
  call get_command_argument(3, restart)
  do i = 1, 2
    call get_command_argument(3 + i, given)
    if (given /= "") read (given, *) steps(i)
  end do
  inquire (file=restart, exist=goes_on)
  if (.not. goes_on) call minimize("Adam(lr=0.1)", steps(1))
  call minimize("LBFGS(max_iter=10, line_search_fn='strong_wolfe')", steps(2))
  if (rank == 0) print "(a, i0, a, f6.4, a, f6.4)", "on ", ranks, " ranks: misfit ", misfit, ", relative error ", error
  call get_command_argument(1, path)
  if (path /= "") call write_field()
  call MPI_Finalize()

contains

  subroutine minimize(spec, times)
    character(*), intent(in) :: spec
    integer, intent(in) :: times
    type(optimizer) :: opt
    logical :: more
    integer :: i
    real(real64) :: done

    call opt%create(spec)
    call distribute(opt, "Shard(0)", MPI_COMM_WORLD)
    call opt%bind("m", m, gradient)
    call opt%checkpoint("parameters=True") ! a file has m in it
    if (goes_on) call opt%load(restart)
    call opt%get(0, "step", done)
    do i = nint(done) + 1, times
      do
        call opt%iterate(loss, more)
        if (.not. more) exit
        call evaluate(spec)
      end do
      if (restart /= "" .and. spec(1:5) == "LBFGS") call opt%save(restart)
    end do
    if (rank == 0) then
      if (goes_on) print "(3a, i0, a)", "went on from ", trim(restart), ", after ", nint(done), " steps"
      print "(2a, i0, a, f6.4)", spec, ": after ", evaluations, " evaluations the misfit is ", misfit
      flush (output_unit)
    end if
  end subroutine

  !> This rank's part of what is minimized; and, to be told, the misfit and the error of the whole.
  subroutine evaluate(spec)
    character(*), intent(in) :: spec
    real(real64) :: mine(3), whole(3)

    call misfit_and_gradient(m, mine(1), gradient)
    loss = mine(1)
    call add_roughness(m, smoothing, loss, gradient)
    mine(2:) = [loss, sum((reshape(m, [n, last - first + 1]) - truth(:, first:last))**2)]
    call MPI_Allreduce(mine, whole, 3, MPI_DOUBLE_PRECISION, MPI_SUM, MPI_COMM_WORLD)
    misfit = whole(1)
    error = sqrt(whole(3)) / norm2(truth)
    evaluations = evaluations + 1
    if (losses == 0) return
    write (losses, "(i0, a, es20.12, a)") evaluations, repeat(",", merge(1, 2, spec(1:4) == "Adam")), whole(2), &
      repeat(",", merge(1, 0, spec(1:4) == "Adam"))
    flush (losses)
  end subroutine

  !> Write the field and the rank that has found each cell.
  subroutine write_field()
    real(real64) :: mine(n, n, 2), whole(n, n, 2)
    integer :: unit, i, j

    mine = 0
    mine(:, first:last, 1) = reshape(m, [n, last - first + 1])
    mine(:, first:last, 2) = rank
    call MPI_Allreduce(mine, whole, size(mine), MPI_DOUBLE_PRECISION, MPI_SUM, MPI_COMM_WORLD)
    if (rank > 0) return
    open (newunit=unit, file=path, status="replace", action="write")
    write (unit, "(a)") "x,y,truth,recovered,rank"
    do j = 1, n
      do i = 1, n
        write (unit, "(4(f9.6, ','), i0)") (i - 0.5) / n, (j - 0.5) / n, truth(i, j), whole(i, j, 1), nint(whole(i, j, 2))
      end do
    end do
    close (unit)
  end subroutine
end program
