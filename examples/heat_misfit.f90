!> How well a conductivity explains what thermometers on the plate of heat.f90 have shown.
module heat_misfit
  use, intrinsic :: iso_fortran_env, only: int64, real64
  use heat, only: duration, faces, n, simulate, solve_along_x, solve_along_y, steps, true_field
  implicit none
  private

  public :: measure, misfit_and_gradient, add_roughness

  integer, parameter, public :: thermometers = 200 !< Each is read after each step.
  real(real64), parameter, public :: noise = 0.01_real64

  integer, protected, public :: place(2, thermometers)
  real(real64), protected, public :: measured(thermometers, steps)

contains

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
