!> The equations of examples/heat_inverse.f90: the adjoint against finite differences, and the heat there is.
program test_heat
  use, intrinsic :: iso_fortran_env, only: error_unit, real64
  use heat, only: duration, n, simulate, true_field
  use heat_misfit, only: add_roughness, measure, misfit_and_gradient
  implicit none

  real(real64), parameter :: h = 1e-4_real64
  real(real64) :: m(n, n), direction(n, n), gradient(n, n), ignored(n, n), above, below, slope
  integer :: i

  call measure()
  call random_seed(put=[(i, i=1, 64)])
  do i = 1, 10
    call random_number(m)
    call random_number(direction)
    direction = direction - 0.5_real64
    call total(m, slope, gradient)
    call total(m + h * direction, above, ignored)
    call total(m - h * direction, below, ignored)
    slope = sum(gradient * direction)
    call check(abs((above - below) / (2 * h) - slope) < 1e-6_real64 * norm2(gradient) * norm2(direction), &
      "the gradient is that of finite differences")
  end do
  call the_heat_is_what_the_heaters_gave(0 * m)
  call the_heat_is_what_the_heaters_gave(3 * m)
  call misfit_and_gradient(true_field(n), above, ignored)
  call check(above > 0.9_real64 .and. above < 1.1_real64, "the truth explains all but the noise")

contains

  subroutine total(m, loss, gradient)
    real(real64), intent(in) :: m(n, n)
    real(real64), intent(out) :: loss, gradient(n, n)

    call misfit_and_gradient(m, loss, gradient)
    call add_roughness(m, 0.1_real64, loss, gradient)
  end subroutine

  !> An insulated plate keeps what five heaters in turn, Gaussians of width 0.1, have given within it.
  subroutine the_heat_is_what_the_heaters_gave(m)
    real(real64), intent(in) :: m(n, n)
    real(real64), parameter :: pi = acos(-1.0_real64)
    real(real64), allocatable :: u(:, :, :)
    real(real64) :: given

    allocate (u(n, n, 0:40))
    call simulate(m, u)
    given = 100 * duration / 5 * pi * 0.1_real64**2 / 4 * (4 * (1 + erf(2.0_real64))**2 + 4)
    call check(abs(sum(u(:, :, 40)) / n**2 / given - 1) < 1e-3_real64, "heat is neither lost nor made")
  end subroutine

  subroutine check(is_true, what)
    logical, intent(in) :: is_true
    character(*), intent(in) :: what

    if (is_true) return
    write (error_unit, "(2a)") "this is not so: ", what
    error stop 1
  end subroutine
end program
