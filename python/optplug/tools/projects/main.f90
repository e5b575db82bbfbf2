!> @NAME@ fits a curve to points with an optimizer of PyTorch's:
!>
!>     build/@NAME@                        by Adam
!>     build/@NAME@ "RMSprop(lr=0.01)"     by another one, without compiling again
!>
!> Put your simulation and its gradient in place of loss_and_gradient.
program main
  use, intrinsic :: iso_fortran_env, only: real64
  use optplug, only: optimizer
  implicit none
  integer, parameter :: steps = 1000
  real(real64), target :: w(2) = 1, dw(2)
  real(real64) :: loss
  type(optimizer) :: opt
  character(200) :: spec
  integer :: i

  spec = "Adam(lr=0.05)"
  if (command_argument_count() > 0) call get_command_argument(1, spec)
  call opt%create(spec)
  call opt%bind("w", w, dw)
  call opt%schedule("CosineAnnealingLR(T_max=1000)")
  do i = 0, steps
    call loss_and_gradient(loss)
    if (mod(i, 100) == 0) print "(i4, a, es9.3, a, 2f9.6)", i, "  loss ", loss, "  w", w
    if (i == steps) exit
    call opt%step()
    call opt%schedule_step()
  end do

contains

  !> The mean square of w(1) exp(-w(2) t) - y over points of 2 exp(-0.5 t), and its gradient.
  subroutine loss_and_gradient(loss)
    real(real64), intent(out) :: loss
    real(real64), dimension(20) :: t, decay, error
    integer :: k

    t = [(0.2_real64 * k, k = 0, 19)]
    decay = exp(-w(2) * t)
    error = w(1) * decay - 2 * exp(-0.5_real64 * t)
    loss = sum(error**2) / size(t)
    dw(1) = 2 * sum(error * decay) / size(t)
    dw(2) = -2 * sum(error * w(1) * t * decay) / size(t)
  end subroutine
end program
