!> Ranks for the module optplug over your program's own MPI: compile this with your mpifort, after optplug.f90.
!>
!>     use mpi_f08, only: MPI_COMM_WORLD
!>     use optplug, only: optimizer
!>     use optplug_mpi, only: distribute
!>
!>     call opt%create("LBFGS(line_search_fn='strong_wolfe')")
!>     call distribute(opt, "Shard(0)", MPI_COMM_WORLD)
!>     call opt%bind("k", k, dk)               ! this rank's part
!>
!> The communicator is one of mpi_f08, or an integer of mpif.h or the module mpi; it must outlive the optimizer.
module optplug_mpi
  use, intrinsic :: iso_c_binding, only: c_char, c_double, c_f_pointer, c_float, c_funloc, c_funptr, c_int, c_int64_t, c_loc, &
    c_ptr
  use mpi_f08, only: MPI_Allgather, MPI_Bcast, MPI_BYTE, MPI_Comm, MPI_Comm_rank, MPI_Comm_size, MPI_Datatype, &
    MPI_DOUBLE_PRECISION, MPI_REAL, MPI_Reduce_scatter_block, MPI_SUCCESS, MPI_SUM
  use optplug, only: optimizer
  implicit none
  private
  public :: distribute

  !> Let the ranks of a communicator step an optimizer together: see opt%distribute.
  interface distribute
    module procedure distribute_f08, distribute_integer
  end interface

  !> Communicators whose addresses optimizers keep; never freed, a few bytes each.
  type :: kept
    integer :: comm
    type(kept), pointer :: next => null()
  end type
  type(kept), pointer :: all_kept => null()

contains

  subroutine distribute_f08(opt, placement, comm, stat, errmsg)
    class(optimizer), intent(inout) :: opt
    character(*), intent(in) :: placement
    type(MPI_Comm), intent(in) :: comm
    integer, intent(out), optional :: stat
    character(*), intent(inout), optional :: errmsg

    call distribute_integer(opt, placement, comm%MPI_VAL, stat, errmsg)
  end subroutine

  subroutine distribute_integer(opt, placement, comm, stat, errmsg)
    class(optimizer), intent(inout) :: opt
    character(*), intent(in) :: placement
    integer, intent(in) :: comm
    integer, intent(out), optional :: stat
    character(*), intent(inout), optional :: errmsg
    type(kept), pointer :: found
    type(c_funptr) :: function
    integer :: rank, size

    call MPI_Comm_rank(MPI_Comm(comm), rank)
    call MPI_Comm_size(MPI_Comm(comm), size)
    found => all_kept
    do while (associated(found))
      if (found%comm == comm) exit
      found => found%next
    end do
    if (.not. associated(found)) then
      allocate (found)
      found%comm = comm
      found%next => all_kept
      all_kept => found
    end if
    ! A variable: gfortran puts the constant into read-only memory, which the loader cannot relocate.
    function = c_funloc(collective)
    call opt%distribute(placement, function, c_loc(found%comm), rank, size, stat, errmsg)
  end subroutine

  !> An opt_collective of optplug.h.
  integer(c_int) function collective(user, what, dtype, send, receive, count) bind(c) result(status)
    type(c_ptr), value :: user, send, receive
    character(kind=c_char), intent(in) :: what(*), dtype(*)
    integer(c_int64_t), value :: count
    integer, pointer :: comm
    integer(c_int64_t) :: ranks
    integer :: size
    character(kind=c_char), pointer :: bytes(:), all_bytes(:)
    real(c_float), pointer :: singles(:), all_singles(:)
    real(c_double), pointer :: doubles(:), all_doubles(:)

    call c_f_pointer(user, comm)
    call MPI_Comm_size(MPI_Comm(comm), size)
    ranks = int(size, c_int64_t)
    if (what(1) == "a") then
      call c_f_pointer(send, bytes, [count])
      call c_f_pointer(receive, all_bytes, [count * ranks])
      status = gathered(bytes, all_bytes, count, MPI_Comm(comm))
    else if (dtype(6) == "6") then
      call c_f_pointer(send, all_doubles, [count * ranks])
      call c_f_pointer(receive, doubles, [count])
      status = reduced(all_doubles, doubles, count, MPI_DOUBLE_PRECISION, MPI_Comm(comm))
    else
      call c_f_pointer(send, all_singles, [count * ranks])
      call c_f_pointer(receive, singles, [count])
      status = reduced(all_singles, singles, count, MPI_REAL, MPI_Comm(comm))
    end if
  end function

  !> Gather the values of all ranks, in pieces if they are more than MPI can count.
  integer(c_int) function gathered(send, receive, count, comm) result(status)
    integer(c_int64_t), intent(in) :: count
    character(kind=c_char), intent(in) :: send(count)
    character(kind=c_char), intent(inout) :: receive(*)
    type(MPI_Comm), intent(in) :: comm
    integer :: rank, size, root, n, failed
    integer(c_int64_t) :: done, at

    if (count <= huge(n)) then
      n = int(count)
      call MPI_Allgather(send, n, MPI_BYTE, receive, n, MPI_BYTE, comm, failed)
    else
      call MPI_Comm_rank(comm, rank)
      call MPI_Comm_size(comm, size)
      receive(rank * count + 1:(rank + 1) * count) = send
      do root = 0, size - 1
        done = 0
        do while (done < count)
          n = int(min(count - done, int(huge(n), c_int64_t)))
          at = root * count + done + 1
          call MPI_Bcast(receive(at:at + n - 1), n, MPI_BYTE, root, comm, failed)
          if (failed /= MPI_SUCCESS) exit
          done = done + n
        end do
        if (failed /= MPI_SUCCESS) exit
      end do
    end if
    status = merge(0, -1, failed == MPI_SUCCESS)
  end function

  !> Sum the values that the ranks have for this one; fails for more than MPI can count.
  integer(c_int) function reduced(send, receive, count, type, comm) result(status)
    type(*), intent(in) :: send(..)
    type(*), intent(inout) :: receive(..)
    integer(c_int64_t), intent(in) :: count
    type(MPI_Datatype), intent(in) :: type
    type(MPI_Comm), intent(in) :: comm
    integer :: failed

    failed = 1
    if (count <= huge(failed)) call MPI_Reduce_scatter_block(send, receive, int(count), type, MPI_SUM, comm, failed)
    status = merge(0, -1, failed == MPI_SUCCESS)
  end function
end module
