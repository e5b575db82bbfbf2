!> A plate that is heated in one place after another, and how well a conductivity explains what thermometers
!> on it have shown.
!>
!> The plate is the unit square, insulated.  Its temperature u obeys du/dt = div(exp(m) grad u) + q: m is the
!> logarithm of the conductivity.  On n x n cells a step of backward Euler is made along x and then along y,
!>
!>     (1 + dt A_x) u(half) = u(old) + dt q,    (1 + dt A_y) u(new) = u(half)
!>
!> which is stable for any m.  A_x and A_y are symmetric, and tridiagonal along each line of cells.
module heat
  use, intrinsic :: iso_fortran_env, only: int64, real64
  implicit none
  private

  public :: true_field, heating, simulate, measure, misfit_and_gradient, add_roughness

  integer, parameter, public :: n = 32 !< Cells along a side.
  integer, parameter, public :: steps = 100, thermometers = 200 !< Each thermometer is read after each step.
  real(real64), parameter, public :: duration = 0.15_real64
  real(real64), parameter, public :: noise = 0.01_real64
  real(real64), parameter :: heaters(2, 5) = reshape(real( &
    [0.2, 0.2, 0.8, 0.8, 0.2, 0.8, 0.8, 0.2, 0.5, 0.5], real64), [2, 5]) !< x and y of each.

  integer, protected, public :: place(2, thermometers)
  real(real64), protected, public :: measured(thermometers, steps)

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

  !> Read the thermometers of the true plate, with noise.  Its cells and steps are a third as long: what is to
  !> be explained must not come from the very equations that shall explain it.
  subroutine measure()
    integer, parameter :: fine = 3
    real(real64), allocatable :: u(:, :, :)
    integer(int64) :: seed
    integer :: i, s

    allocate (u(fine * n, fine * n, 0:2 * fine * steps))
    call simulate(true_field(fine * n), u)
    seed = 20240501
    do i = 1, thermometers
      place(:, i) = 1 + int(n * [uniform(seed), uniform(seed)])
      do s = 1, steps
        measured(i, s) = noise * normal(seed) + u(fine * place(1, i) - 1, fine * place(2, i) - 1, 2 * fine * s)
      end do
    end do
  end subroutine

  !> A random number between 0 and 1, by Park and Miller: the same with every compiler.
  real(real64) function uniform(seed)
    integer(int64), intent(inout) :: seed

    seed = mod(16807 * seed, 2147483647_int64)
    uniform = seed / 2147483647.0_real64
  end function

  real(real64) function normal(seed)
    integer(int64), intent(inout) :: seed

    normal = sqrt(-2 * log(uniform(seed)))
    normal = normal * cos(2 * acos(-1.0_real64) * uniform(seed))
  end function

  !> The mean square of what m does not explain, in units of the noise: 1 is as small as it should get.  Its
  !> gradient by the adjoint: the steps backwards, each as the transpose of what it was.
  subroutine misfit_and_gradient(m, misfit, gradient)
    real(real64), intent(in) :: m(n, n)
    real(real64), intent(out) :: misfit, gradient(n, n)
    real(real64), allocatable, save :: u(:, :, :)
    real(real64) :: adjoint(n, n), resistance(n, n), residual, dt
    integer :: i, s

    if (.not. allocated(u)) allocate (u(n, n, 0:2 * steps))
    call simulate(m, u)
    resistance = exp(-m)
    dt = duration / steps
    misfit = 0
    gradient = 0
    adjoint = 0
    do s = steps, 1, -1
      do i = 1, thermometers
        associate (x => place(1, i), y => place(2, i))
          residual = (u(x, y, 2 * s) - measured(i, s)) / noise
          misfit = misfit + residual**2 / size(measured)
          adjoint(x, y) = adjoint(x, y) + 2 * residual / noise / size(measured)
        end associate
      end do
      call solve_along_y(resistance, dt, adjoint)
      do i = 1, n
        call add_gradient(resistance(i, :), dt, u(i, :, 2 * s), adjoint(i, :), gradient(i, :))
      end do
      call solve_along_x(resistance, dt, adjoint)
      do i = 1, n
        call add_gradient(resistance(:, i), dt, u(:, i, 2 * s - 1), adjoint(:, i), gradient(:, i))
      end do
    end do
  end subroutine

  !> Add what a line of half a step does to the gradient: -adjoint * (dt dA/dm) u.
  pure subroutine add_gradient(resistance, dt, u, adjoint, gradient)
    real(real64), intent(in) :: resistance(:), dt, u(:), adjoint(:)
    real(real64), intent(inout) :: gradient(:)
    real(real64) :: change(size(u) - 1)

    associate (last => size(u))
      change = faces(resistance, dt)**2 / (2 * dt * last**2) * (u(2:) - u(:last - 1)) &
        * (adjoint(2:) - adjoint(:last - 1))
      gradient(2:) = gradient(2:) - change * resistance(2:)
      gradient(:last - 1) = gradient(:last - 1) - change * resistance(:last - 1)
    end associate
  end subroutine

  !> Add the total variation of m, by which few edges are better than many, and its gradient.  Below
  !> small a difference counts as its square, so that there is a gradient.
  subroutine add_roughness(m, weight, loss, gradient)
    real(real64), intent(in) :: m(n, n), weight
    real(real64), intent(inout) :: loss, gradient(n, n)
    real(real64), parameter :: small = 0.01_real64
    real(real64) :: dx(n - 1, n), dy(n, n - 1)

    dx = m(2:, :) - m(:n - 1, :)
    dy = m(:, 2:) - m(:, :n - 1)
    loss = loss + weight / n * (sum(hypot(dx, small)) + sum(hypot(dy, small)))
    dx = weight / n * dx / hypot(dx, small)
    dy = weight / n * dy / hypot(dy, small)
    gradient(2:, :) = gradient(2:, :) + dx
    gradient(:n - 1, :) = gradient(:n - 1, :) - dx
    gradient(:, 2:) = gradient(:, 2:) + dy
    gradient(:, :n - 1) = gradient(:, :n - 1) - dy
  end subroutine
end module
