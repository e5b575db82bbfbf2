! A Fortran host built with -ffpe-trap=zero,invalid,overflow and OpenMP: what Python and torch do with
! infinities must not end it, before and after its own parallel regions, and its own traps stay.
program test_traps
  use, intrinsic :: iso_c_binding, only: c_char, c_double, c_int, c_int64_t, c_loc, c_null_char, c_ptr
  use, intrinsic :: ieee_arithmetic, only: ieee_divide_by_zero, ieee_get_halting_mode, ieee_invalid, &
    ieee_overflow
  use, intrinsic :: omp_lib, only: omp_get_max_threads
  implicit none

  interface
    integer(c_int) function opt_create(spec) bind(c)
      import :: c_char, c_int
      character(kind=c_char), intent(in) :: spec(*)
    end function

    integer(c_int) function opt_bind(opt, name, dtype, n, data, grad) bind(c)
      import :: c_char, c_int, c_int64_t, c_ptr
      integer(c_int), value :: opt
      character(kind=c_char), intent(in) :: name(*), dtype(*)
      integer(c_int64_t), value :: n
      type(c_ptr), value :: data, grad
    end function

    integer(c_int) function opt_step(opt) bind(c)
      import :: c_int
      integer(c_int), value :: opt
    end function

    integer(c_int) function opt_free(opt) bind(c)
      import :: c_int
      integer(c_int), value :: opt
    end function
  end interface

  integer, parameter :: n = 2**20
  real(c_double), target, allocatable :: w(:), dw(:)

  allocate (w(n), dw(n))
  call steps("Adam(lr=0.1)")
  call steps("RMSprop(lr=0.1)")
  call parallel_region()
  call steps("Adam(lr=0.1)")
  call steps("Adagrad(lr=0.1)")
  call steps("Adam(lr=0.1, fused=False)")
  call parallel_region()

contains

  !> Steps with gradients whose squares overflow, and with none, where 0 / (0 + eps) comes up.
  subroutine steps(spec)
    character(len=*), intent(in) :: spec
    integer(c_int) :: opt
    integer :: i, before

    before = omp_get_max_threads()
    w = 1
    opt = opt_create(spec // c_null_char)
    call check(opt > 0)
    call check(opt_bind(opt, "w" // c_null_char, "float64" // c_null_char, int(n, c_int64_t), &
      c_loc(w), c_loc(dw)) == 0)
    do i = 1, 3
      dw = merge(1e200_c_double, 0.0_c_double, i == 2)
      call check(opt_step(opt) == 0)
    end do
    call check(opt_free(opt) == 0)
    call check(omp_get_max_threads() == before)
    call check_traps()
  end subroutine

  subroutine parallel_region()
    integer :: i

    !$omp parallel do
    do i = 1, n
      w(i) = sqrt(abs(w(i)))
    end do
    call check_traps()
  end subroutine

  subroutine check_traps()
    logical :: halts(3)

    call ieee_get_halting_mode(ieee_divide_by_zero, halts(1))
    call ieee_get_halting_mode(ieee_invalid, halts(2))
    call ieee_get_halting_mode(ieee_overflow, halts(3))
    call check(all(halts))
  end subroutine

  subroutine check(is_true)
    logical, intent(in) :: is_true

    if (.not. is_true) error stop 1
  end subroutine
end program
