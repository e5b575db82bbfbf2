!> A network of neural-fortran's, trained by an optimizer of PyTorch's: it learns a chirp.
!>
!> Usage: neural_fortran "AdamW(lr=0.01)" [LOSSES.csv CURVE.csv]
program neural_fortran
  use nf, only: dense, input, network
  use torch_optimizers, only: torch_optimizer
  implicit none
  integer, parameter :: points = 64, epochs = 4000
  real, parameter :: pi = acos(-1.)
  character(500) :: spec, losses, curve
  type(network) :: net
  real :: x(points), y(points), found(1), loss
  integer :: epoch, i, file

  call get_command_argument(1, spec)
  call get_command_argument(2, losses)
  call get_command_argument(3, curve)
  if (losses == "") losses = "/dev/null"
  if (curve == "") curve = "/dev/null"
  x = [(real(i) / points, i = 1, points)]
  y = 0.5 + 0.4 * sin(3 * pi * x**2)
  call random_init(repeatable=.true., image_distinct=.false.)
  net = network([input(1), dense(12), dense(12), dense(1)])

  open (newunit=file, file=losses)
  write (file, "(a)") "epoch,loss"
  do epoch = 1, epochs
    loss = 0
    do i = 1, points
      found = net%predict([x(i)])
      loss = loss + (found(1) - y(i))**2 / points
      call net%forward([x(i)])
      call net%backward([y(i)])
    end do
    call net%update(optimizer=torch_optimizer(trim(spec)), batch_size=points)
    if (epoch == 1 .or. mod(epoch, 20) == 0) write (file, "(i0, a, es12.5)") epoch, ",", loss
  end do
  close (file)
  print "(a, a, es8.1)", trim(spec), ": loss", loss

  open (newunit=file, file=curve)
  write (file, "(a)") "x,y,found"
  do i = 1, points
    write (file, "(es12.5, 2(a, es12.5))") x(i), ",", y(i), ",", net%predict([x(i)])
  end do
  close (file)
end program
