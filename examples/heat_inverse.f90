!> Find the conductivity of a plate from what thermometers on it have shown, with any optimizer of PyTorch.
!>
!>     heat_inverse [examples/heat_inverse.nml]
!>
!> The equations are in heat.f90, their adjoint in heat_misfit.f90; optimizer, schedule, restart and files in
!> the namelist.  Each step is made by reverse communication, as LBFGS evaluates the loss several times in one
!> and the others once: so another optimizer takes another namelist and nothing else.
program heat_inverse
  use, intrinsic :: iso_c_binding, only: c_char, c_int, c_null_char
  use, intrinsic :: iso_fortran_env, only: int64, int8, output_unit, real64
  use heat, only: n, true_field
  use heat_misfit, only: add_roughness, measure, misfit_and_gradient
  use optplug, only: optimizer
  implicit none

  interface
    !> The C library's.
    integer(c_int) function rename(old, new) bind(c)
      import :: c_char, c_int
      character(kind=c_char), intent(in) :: old(*), new(*)
    end function
  end interface

  character(200) :: message, spec = "Adam()", schedule = "", checkpoint = "heat_inverse.restart", field = ""
  integer :: iterations = 100, print_every = 10, checkpoint_every = 0
  real(real64) :: smoothing = 0
  logical :: restart = .false.
  namelist /inversion/ spec, schedule, iterations, print_every, smoothing, checkpoint, checkpoint_every, &
    restart, field

  ! n x n to heat_misfit.f90; flat here, since LBFGS takes no gradients in Fortran's order.
  real(real64), target :: m(n * n) = 0, gradient(n * n) = 0
  real(real64) :: truth(n, n), loss = 0, misfit, rate
  type(optimizer) :: opt
  logical :: more
  integer :: i, stat, done = 0

  call read_namelist()
  call measure()
  truth = true_field(n)
  call opt%create(spec)
  call opt%bind("m", m, gradient)
  if (schedule /= "") call opt%schedule(schedule)
  if (restart) call go_on()

  print "(a)", "iteration  learning rate    loss  misfit  relative error"
  do i = done + 1, iterations
    do
      call opt%iterate(loss, more)
      if (.not. more) exit
      call evaluate()
    end do
    if (i == 1 .or. mod(i, print_every) == 0) then
      call opt%get(0, "lr", rate)
      print "(i9, es15.2, 2f8.4, f16.4)", i, rate, loss, misfit, relative_error()
      flush (output_unit)
    end if
    if (index(schedule, "ReduceLROnPlateau") == 1) then
      call opt%schedule_step(loss)
    else if (schedule /= "") then
      call opt%schedule_step()
    end if
    if (checkpoint_every > 0 .and. mod(i, max(checkpoint_every, 1)) == 0) call save(i)
  end do
  call evaluate()
  print "(2a, f6.4, a, f6.4)", trim(spec), ": misfit ", misfit, ", relative error ", relative_error()
  if (field /= "") call write_field()

contains

  subroutine read_namelist()
    character(200) :: path
    integer :: unit

    path = "examples/heat_inverse.nml"
    if (command_argument_count() > 0) call get_command_argument(1, path)
    open (newunit=unit, file=path, status="old", action="read", iostat=stat, iomsg=message)
    if (stat == 0) read (unit, nml=inversion, iostat=stat, iomsg=message)
    if (stat /= 0) call stop_for(path)
    close (unit)
  end subroutine

  subroutine stop_for(path)
    character(*), intent(in) :: path

    error stop "heat_inverse: " // trim(path) // ": " // trim(message)
  end subroutine

  !> What is minimized: what the field does not explain, and a little of its roughness.
  subroutine evaluate()
    call misfit_and_gradient(m, misfit, gradient)
    loss = misfit
    call add_roughness(m, smoothing, loss, gradient)
  end subroutine

  !> How far m is from the truth, where 0 is 1 away.
  real(real64) function relative_error()
    relative_error = norm2(reshape(m, [n, n]) - truth) / norm2(truth)
  end function

  !> Write a file from which the run goes on.  At any moment it is the old one or the new one, whole.
  subroutine save(iteration)
    integer, intent(in) :: iteration
    integer(int8), allocatable, target :: state(:)
    integer :: unit

    call opt%save_memory(state)
    open (newunit=unit, file=trim(checkpoint) // ".tmp", access="stream", status="replace", action="write", &
      iostat=stat, iomsg=message)
    if (stat == 0) write (unit, iostat=stat, iomsg=message) iteration, m, size(state, kind=int64), state
    if (stat == 0) close (unit, iostat=stat, iomsg=message)
    if (stat == 0) then
      message = "cannot be renamed from " // trim(checkpoint) // ".tmp"
      stat = rename(trim(checkpoint) // ".tmp" // c_null_char, trim(checkpoint) // c_null_char)
    end if
    if (stat /= 0) call stop_for(checkpoint)
  end subroutine

  subroutine go_on()
    integer(int8), allocatable, target :: state(:)
    integer(int64) :: bytes
    integer :: unit
    logical :: is_there

    inquire (file=checkpoint, exist=is_there)
    if (.not. is_there) return
    open (newunit=unit, file=checkpoint, access="stream", status="old", action="read", iostat=stat, &
      iomsg=message)
    if (stat == 0) read (unit, iostat=stat, iomsg=message) done, m, bytes
    if (stat == 0) allocate (state(bytes), stat=stat, errmsg=message)
    if (stat == 0) read (unit, iostat=stat, iomsg=message) state
    if (stat /= 0) call stop_for(checkpoint)
    close (unit)
    call opt%load_memory(state)
    print "(3a, i0)", "going on with ", trim(checkpoint), ", after iteration ", done
  end subroutine

  subroutine write_field()
    integer :: unit, j

    open (newunit=unit, file=field, status="replace", action="write", iostat=stat, iomsg=message)
    if (stat /= 0) call stop_for(field)
    write (unit, "(a)") "x,y,truth,recovered"
    do j = 1, n
      do i = 1, n
        write (unit, "(3(f9.6, ','), f9.6)") (i - 0.5) / n, (j - 0.5) / n, truth(i, j), m(i + n * (j - 1))
      end do
    end do
    close (unit)
  end subroutine
end program
