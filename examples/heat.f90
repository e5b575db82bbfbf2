!> A plate that is heated in one place after another.
!>
!> The plate is the unit square, insulated.  Its temperature u obeys du/dt = div(exp(m) grad u) + q: m is the
!> logarithm of the conductivity.  On n x n cells a step of backward Euler is made along x and then along y,
!>
!>     (1 + dt A_x) u(half) = u(old) + dt q,    (1 + dt A_y) u(new) = u(half)
!>
!> which is stable for any m.  A_x and A_y are symmetric, and tridiagonal along each line of cells.
module heat
  use, intrinsic :: iso_fortran_env, only: real64
  implicit none
  private

  public :: true_field, heating, simulate, solve_along_x, solve_along_y, faces

  integer, parameter, public :: n = 32 !< Cells along a side.
  integer, parameter, public :: steps = 100
  real(real64), parameter, public :: duration = 0.15_real64
  real(real64), parameter :: heaters(2, 5) = reshape(real( &
    [0.2, 0.2, 0.8, 0.8, 0.2, 0.8, 0.8, 0.2, 0.5, 0.5], real64), [2, 5]) !< x and y of each.

contains

  !> The field m that is to be found: gentle slopes, a block that conducts well and a disc that does not.
  function true_field(cells) result(m)
    integer, intent(in) :: cells
    real(real64) :: m(cells, cells), x(cells, cells), y(cells, cells)

    x = spread(centres(cells), 2, cells)
    y = transpose(x)
    m = 0.3_real64 * sin(3 * x) * cos(3 * y)
    where (abs(x - 0.3_real64) < 0.15_real64 .and. abs(y - 0.6_real64) < 0.2_real64) m = m + 1
    where (hypot(x - 0.7_real64, y - 0.35_real64) < 0.17_real64) m = m - 1
  end function

  function centres(cells) result(x)
    integer, intent(in) :: cells
    real(real64) :: x(cells)
    integer :: i

    x = [((i - 0.5_real64) / cells, i=1, cells)]
  end function

  !> What the heaters give at a time: one is on, and then the next.
  function heating(t, cells) result(q)
    real(real64), intent(in) :: t
    integer, intent(in) :: cells
    real(real64) :: q(cells, cells), along_x(cells), along_y(cells)
    integer :: i

    i = 1 + int(t / duration * size(heaters, 2))
    along_x = exp(-((centres(cells) - heaters(1, i)) / 0.1_real64)**2)
    along_y = exp(-((centres(cells) - heaters(2, i)) / 0.1_real64)**2)
    q = 100 * spread(along_x, 2, cells) * spread(along_y, 1, cells)
  end function

  !> Follow the temperature from 0 on: u(:, :, 2 * s - 1) is half of step s, and u(:, :, 2 * s) all of it.
  subroutine simulate(m, u)
    real(real64), intent(in) :: m(:, :)
    real(real64), intent(out) :: u(:, :, 0:)
    real(real64) :: resistance(size(m, 1), size(m, 2)), dt
    integer :: s

    resistance = exp(-m)
    dt = 2 * duration / ubound(u, 3)
    u(:, :, 0) = 0
    do s = 2, ubound(u, 3), 2
      u(:, :, s - 1) = u(:, :, s - 2) + dt * heating((s - 1) * dt / 2, size(m, 1))
      call solve_along_x(resistance, dt, u(:, :, s - 1))
      u(:, :, s) = u(:, :, s - 1)
      call solve_along_y(resistance, dt, u(:, :, s))
    end do
  end subroutine

  subroutine solve_along_x(resistance, dt, u)
    real(real64), intent(in) :: resistance(:, :), dt
    real(real64), intent(inout) :: u(:, :)
    integer :: j

    do j = 1, size(u, 2)
      call solve(faces(resistance(:, j), dt), u(:, j))
    end do
  end subroutine

  subroutine solve_along_y(resistance, dt, u)
    real(real64), intent(in) :: resistance(:, :), dt
    real(real64), intent(inout) :: u(:, :)
    integer :: i

    do i = 1, size(u, 1)
      call solve(faces(resistance(i, :), dt), u(i, :))
    end do
  end subroutine

  !> The conductivity between each two cells of a line, the harmonic mean of theirs, times dt / dx**2.
  pure function faces(resistance, dt) result(k)
    real(real64), intent(in) :: resistance(:), dt
    real(real64) :: k(size(resistance) - 1)

    k = 2 * dt * size(resistance)**2 / (resistance(2:) + resistance(:size(k)))
  end function

  !> Solve (1 + dt A) x = u for a line, in place: k(i) couples cells i and i + 1, and nothing leaves at the ends.
  pure subroutine solve(k, u)
    real(real64), intent(in) :: k(:)
    real(real64), intent(inout) :: u(:)
    real(real64) :: factor(size(k)), pivot
    integer :: i

    pivot = 1
    do i = 1, size(k)
      factor(i) = k(i) / (pivot + k(i))
      u(i) = u(i) / (pivot + k(i))
      u(i + 1) = u(i + 1) + k(i) * u(i)
      pivot = 1 + factor(i) * pivot
    end do
    u(size(u)) = u(size(u)) / pivot
    do i = size(k), 1, -1
      u(i) = u(i) + factor(i) * u(i + 1)
    end do
  end subroutine
end module
