!> What the tests of the Fortran module share.
module checks
  use, intrinsic :: iso_fortran_env, only: error_unit
  implicit none
  private

  public :: check

  type, public :: counter
    integer :: calls = 0
  end type

contains

  subroutine check(is_true, what)
    logical, intent(in) :: is_true
    character(*), intent(in) :: what

    if (is_true) return
    write (error_unit, "(2a)") "this is not so: ", what
    error stop 1
  end subroutine
end module
