!> The plate of heat.f90 on many ranks: each has a strip of its columns, and a halo of its neighbours' around it.
!>
!> A small step forward needs no more than neighbouring cells, u(new) = u(old) + dt (q - A u(old)), and neither
!> does its adjoint.  Each takes one column of the halo away at both sides; when none is left, ranks exchange
!> what lies along their borders.
module heat_ranks
  use, intrinsic :: iso_fortran_env, only: real64
  use heat, only: duration, heating, n, steps
  use heat_misfit, only: measured, noise, place, thermometers
  use mpi_f08, only: MPI_Comm, MPI_Comm_rank, MPI_Comm_size, MPI_DOUBLE_PRECISION, MPI_PROC_NULL, MPI_Sendrecv, &
    MPI_STATUS_IGNORE
  implicit none
  private

  public :: cut, misfit_and_gradient, add_roughness

  !> Small steps between two readings, which are stable up to m = 1.8, and columns in a halo.
  integer, parameter :: small_steps = 40, halo = 5
  real(real64), parameter :: dt = duration / (steps * small_steps), c = 2 * dt * n**2

  integer, protected, public :: first, last !< This rank's columns.
  integer :: low, high !< Those with their halos, which end where the plate does.
  integer :: left, right
  type(MPI_Comm) :: comm
  real(real64), allocatable :: along_x(:, :), along_y(:, :) !< What flows between two cells in a step per degree.
  real(real64), allocatable :: u(:, :, :)

contains

  !> Give each rank of a communicator a strip; false if they are too thin for their halos.
  logical function cut(its_comm)
    type(MPI_Comm), intent(in) :: its_comm
    integer :: rank, ranks

    comm = its_comm
    call MPI_Comm_rank(comm, rank)
    call MPI_Comm_size(comm, ranks)
    cut = n / ranks >= halo .or. ranks == 1
    first = n * rank / ranks + 1
    last = n * (rank + 1) / ranks
    low = max(first - halo, 1)
    high = min(last + halo, n)
    left = merge(rank - 1, MPI_PROC_NULL, rank > 0)
    right = merge(rank + 1, MPI_PROC_NULL, rank < ranks - 1)
    if (allocated(u)) deallocate (u, along_x, along_y)
    if (cut) allocate (u(n, low:high, 0:steps * small_steps), along_x(n - 1, low:high), along_y(n, low:high - 1))
  end function

  !> Let a field have its neighbours' columns in its halos.
  subroutine exchange(f)
    real(real64), intent(inout) :: f(n, low:high)
    integer, parameter :: size = n * halo

    call MPI_Sendrecv(f(1, first), size, MPI_DOUBLE_PRECISION, left, 0, &
      f(1, min(last + 1, high)), size, MPI_DOUBLE_PRECISION, right, 0, comm, MPI_STATUS_IGNORE)
    call MPI_Sendrecv(f(1, max(last - halo + 1, low)), size, MPI_DOUBLE_PRECISION, right, 0, &
      f(1, low), size, MPI_DOUBLE_PRECISION, left, 0, comm, MPI_STATUS_IGNORE)
  end subroutine

  !> Let heat flow for a step, columns a to b of f into those of g.
  subroutine flow(f, a, b, g)
    real(real64), intent(in) :: f(n, low:high)
    integer, intent(in) :: a, b
    real(real64), intent(inout) :: g(n, low:high)
    real(real64) :: x(n - 1), y(n)
    integer :: j

    g(:, a:b) = f(:, a:b)
    do j = a, b
      x = along_x(:, j) * (f(2:, j) - f(:n - 1, j))
      g(:n - 1, j) = g(:n - 1, j) + x
      g(2:, j) = g(2:, j) - x
    end do
    do j = max(a - 1, 1), min(b, n - 1)
      y = along_y(:, j) * (f(:, j + 1) - f(:, j))
      if (j >= a) g(:, j) = g(:, j) + y
      if (j < b) g(:, j + 1) = g(:, j + 1) - y
    end do
  end subroutine

  !> Columns from which a step, the first after an exchange or a later one, is right, and up to which it is.
  pure integer function from(step)
    integer, intent(in) :: step

    from = max(first - halo + 1 + modulo(step, halo), 1)
  end function

  pure integer function to(step)
    integer, intent(in) :: step

    to = min(last + halo - 1 - modulo(step, halo), n)
  end function

  !> This rank's part of the misfit of heat_misfit.f90, and of its gradient: both for its own columns of m.
  subroutine misfit_and_gradient(m, misfit, gradient)
    real(real64), intent(in) :: m(n, first:last)
    real(real64), intent(out) :: misfit, gradient(n, first:last)
    real(real64), dimension(n, low:high) :: resistance, adjoint, before
    real(real64) :: q(n, n), residual
    real(real64) :: x(n - 1, first:last), y(n, max(first - 1, 1):min(last, n - 1))
    integer :: i, j, s, reading

    resistance(:, first:last) = exp(-m)
    call exchange(resistance)
    along_x = c / (resistance(2:, :) + resistance(:n - 1, :))
    along_y = c / (resistance(:, low + 1:) + resistance(:, :high - 1))

    u(:, :, 0) = 0
    do s = 0, steps * small_steps - 1
      if (mod(s, small_steps) == 0) q = dt * heating((s + 0.5_real64) * dt, n)
      call flow(u(:, :, s), from(s), to(s), u(:, :, s + 1))
      u(:, from(s):to(s), s + 1) = u(:, from(s):to(s), s + 1) + q(:, from(s):to(s))
      if (mod(s + 1, halo) == 0) call exchange(u(:, :, s + 1))
    end do

    misfit = 0
    adjoint = 0
    x = 0
    y = 0
    do reading = steps, 1, -1
      do i = 1, thermometers
        if (place(2, i) < first .or. place(2, i) > last) cycle
        residual = (u(place(1, i), place(2, i), reading * small_steps) - measured(i, reading)) / noise
        misfit = misfit + residual**2 / size(measured)
        adjoint(place(1, i), place(2, i)) = adjoint(place(1, i), place(2, i)) + 2 * residual / noise / size(measured)
      end do
      do s = reading * small_steps, (reading - 1) * small_steps + 1, -1
        if (mod(s, halo) == 0) call exchange(adjoint)
        x = x + (u(2:, first:last, s - 1) - u(:n - 1, first:last, s - 1)) &
          * (adjoint(2:, first:last) - adjoint(:n - 1, first:last))
        do j = lbound(y, 2), ubound(y, 2)
          y(:, j) = y(:, j) + (u(:, j + 1, s - 1) - u(:, j, s - 1)) * (adjoint(:, j + 1) - adjoint(:, j))
        end do
        call flow(adjoint, from(-s), to(-s), before)
        adjoint(:, from(-s):to(-s)) = before(:, from(-s):to(-s))
      end do
    end do

    ! How the conductivity between two cells changes with each one's m.
    x = -along_x(:, first:last)**2 / c * x
    y = -along_y(:, lbound(y, 2):ubound(y, 2))**2 / c * y
    gradient = 0
    gradient(:n - 1, :) = x
    gradient(2:, :) = gradient(2:, :) + x
    call add_to_columns(y, 1, gradient)
    gradient = gradient * resistance(:, first:last)
  end subroutine

  !> Add what lies between columns to those on both sides, with a sign for the first, as far as they are ours.
  subroutine add_to_columns(y, sign, gradient)
    real(real64), intent(in) :: y(n, max(first - 1, 1):min(last, n - 1))
    integer, intent(in) :: sign
    real(real64), intent(inout) :: gradient(n, first:last)
    integer :: j

    do j = lbound(y, 2), ubound(y, 2)
      if (j >= first) gradient(:, j) = gradient(:, j) + sign * y(:, j)
      if (j < last) gradient(:, j + 1) = gradient(:, j + 1) + y(:, j)
    end do
  end subroutine

  !> Add this rank's part of the total variation of m, and its gradient: as in heat_misfit.f90.
  subroutine add_roughness(m, weight, loss, gradient)
    real(real64), intent(in) :: m(n, first:last), weight
    real(real64), intent(inout) :: loss, gradient(n, first:last)
    real(real64), parameter :: small = 0.01_real64
    real(real64) :: around(n, low:high), x(n - 1, first:last), y(n, max(first - 1, 1):min(last, n - 1))

    around(:, first:last) = m
    call exchange(around)
    x = m(2:, :) - m(:n - 1, :)
    y = around(:, lbound(y, 2) + 1:ubound(y, 2) + 1) - around(:, lbound(y, 2):ubound(y, 2))
    loss = loss + weight / n * (sum(hypot(x, small)) + sum(hypot(y(:, first:), small)))
    x = weight / n * x / hypot(x, small)
    y = weight / n * y / hypot(y, small)
    gradient(2:, :) = gradient(2:, :) + x
    gradient(:n - 1, :) = gradient(:n - 1, :) - x
    call add_to_columns(y, -1, gradient)
  end subroutine
end module
