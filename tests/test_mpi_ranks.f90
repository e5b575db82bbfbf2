!> Ranks by the module optplug_mpi: each kind of communicator, and LBFGS on parts.
program test_mpi_ranks
  use, intrinsic :: iso_fortran_env, only: real64
  use mpi_f08, only: MPI_Barrier, MPI_Comm_rank, MPI_COMM_WORLD, MPI_Finalize, MPI_Init
  use optplug, only: optimizer
  use optplug_mpi, only: distribute
  implicit none
  type(optimizer) :: opt, other, by_whole
  real(real64), target :: w(10) = 5, dw(10), v(200) = 0, dv(200), m(3, 2), dm(3, 2)
  integer :: rank, i, stat
  character(200) :: message

  call MPI_Init()
  call MPI_Comm_rank(MPI_COMM_WORLD, rank)
  call opt%create("Adam(lr=0.1)")
  call distribute(opt, "Shard(0)", MPI_COMM_WORLD)
  call opt%bind("w", w, dw)
  call other%create("SGD(lr=0.5)")
  call distribute(other, "Replicate(), Partial('sum')", MPI_COMM_WORLD%MPI_VAL)
  call other%bind("v", v, dv)
  do i = 1, 3
    dw = w
    call opt%step()
    dv = real(rank + 1, real64)
    call other%step()
  end do
  if (any(abs(w - w(1)) > 0) .or. w(1) >= 5) error stop "a part was not stepped"
  if (any(abs(v + 0.5_real64 * 3 * 3) > 0)) error stop "gradients of two ranks were not added up"
  call save_in_blocks("Adam(lr=0.1)", flat=.false.)
  call save_in_blocks("LBFGS(max_iter=2)", flat=.true.)
  call by_whole%create("Muon()")
  call distribute(by_whole, "Shard(0)", MPI_COMM_WORLD, stat, message)
  if (stat == 0 .or. index(message, "with Muon, whose steps take whole") == 0) error stop "Muon was not refused"
  call distribute(by_whole, "Replicate()", MPI_COMM_WORLD)
  call by_whole%bind("m", m, dm)
  m = 1
  dm = real(rank + 1, real64)
  call by_whole%step()
  if (any(abs(m - m(1, 1)) > 0) .or. m(1, 1) >= 1) error stop "a matrix was not stepped on all ranks"
  call MPI_Finalize()

contains

  !> Save a grid of 4 x 6 of which each rank has 4 x 3, and read it in one process.
  subroutine save_in_blocks(spec, flat)
    character(*), intent(in) :: spec
    logical, intent(in) :: flat
    type(optimizer) :: parts, one
    real(real64), target :: u(4, 3), du(4, 3), all(4, 6), dall(4, 6)
    integer :: j

    u = reshape([(real(j, real64), j = 12 * rank, 12 * rank + 11)], [4, 3])
    call parts%create(spec)
    call distribute(parts, "Shard(0)", MPI_COMM_WORLD)
    call parts%bind("u", u, du, flat=flat)
    call parts%bind_block("u", [4, 6], [0, 3 * rank])
    call parts%bind_block("u", [4, 7], [0, 3 * rank, 0], stat=stat, errmsg=message)
    if (stat == 0 .or. index(message, "equally many values") == 0) error stop "sizes that differ were taken"
    call parts%checkpoint("parameters=True")
    call parts%save("grid.pt")
    all = -1
    call one%create(spec)
    call one%bind("u", all, dall, flat=flat)
    call one%checkpoint("parameters=True")
    call one%load("grid.pt")
    call MPI_Barrier(MPI_COMM_WORLD)
    if (rank == 0) then
      open (newunit=j, file="grid.pt")
      close (j, status="delete")
    end if
    if (any(abs(all - reshape([(real(j, real64), j = 0, 23)], [4, 6])) > 0)) error stop "the grid is another one"
  end subroutine
end program
