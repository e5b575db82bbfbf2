!> The part of neural-fortran 0.24.0 that examples/neural_fortran.f90 needs, so that it runs without it: dense
!> layers of sigmoids, by the same names.  With neural-fortran, leave this file out.
module nf_optimizers
  implicit none

  type, abstract :: optimizer_base_type
    real :: learning_rate = 0.01
  contains
    procedure(init), deferred :: init
    procedure(minimize), deferred :: minimize
  end type

  abstract interface
    impure elemental subroutine init(self, num_params)
      import :: optimizer_base_type
      class(optimizer_base_type), intent(inout) :: self
      integer, intent(in) :: num_params
    end subroutine

    pure subroutine minimize(self, param, gradient)
      import :: optimizer_base_type
      class(optimizer_base_type), intent(inout) :: self
      real, intent(inout) :: param(:)
      real, intent(in) :: gradient(:)
    end subroutine
  end interface
end module

module nf
  use nf_optimizers, only: optimizer_base_type
  implicit none
  private
  public :: dense, input, layer, network

  type :: layer
    integer :: n = 0
    real, allocatable :: w(:, :), b(:), dw(:, :), db(:), y(:)
    class(optimizer_base_type), allocatable :: optimizer
  end type

  type :: network
    type(layer), allocatable :: layers(:)
  contains
    procedure :: forward, backward, predict, update
  end type

  interface network
    module procedure connect
  end interface

contains

  type(layer) function dense(n)
    integer, intent(in) :: n

    dense%n = n
  end function

  type(layer) function input(n)
    integer, intent(in) :: n

    input%n = n
  end function

  type(network) function connect(layers)
    type(layer), intent(in) :: layers(:)
    integer :: i, before, here

    allocate (connect%layers(size(layers)))
    do i = 2, size(layers)
      before = layers(i - 1)%n
      here = layers(i)%n
      associate (l => connect%layers(i))
        allocate (l%w(before, here), l%b(here), l%dw(before, here), l%db(here))
        call random_number(l%w)
        l%w = 2 * (2 * l%w - 1)
        l%b = 0
        l%dw = 0
        l%db = 0
      end associate
    end do
  end function

  subroutine forward(self, x)
    class(network), intent(inout) :: self
    real, intent(in) :: x(:)
    integer :: i

    self%layers(1)%y = x
    do i = 2, size(self%layers)
      associate (l => self%layers(i))
        l%y = 1 / (1 + exp(-(matmul(self%layers(i - 1)%y, l%w) + l%b)))
      end associate
    end do
  end subroutine

  !> Add the gradient of half the squared error.
  subroutine backward(self, wanted)
    class(network), intent(inout) :: self
    real, intent(in) :: wanted(:)
    real, allocatable :: back(:), db(:)
    integer :: i, j

    back = self%layers(size(self%layers))%y - wanted
    do i = size(self%layers), 2, -1
      associate (l => self%layers(i), x => self%layers(i - 1)%y)
        db = back * l%y * (1 - l%y)
        do j = 1, size(db)
          l%dw(:, j) = l%dw(:, j) + db(j) * x
        end do
        l%db = l%db + db
        back = [matmul(l%w, db)] ! gfortran 12 writes a matmul past the end of what is to grow
      end associate
    end do
  end subroutine

  function predict(self, x) result(y)
    class(network), intent(inout) :: self
    real, intent(in) :: x(:)
    real, allocatable :: y(:)

    call self%forward(x)
    y = self%layers(size(self%layers))%y
  end function

  subroutine update(self, optimizer, batch_size)
    class(network), intent(inout), target :: self
    class(optimizer_base_type), intent(in) :: optimizer
    integer, intent(in) :: batch_size
    real, pointer :: w(:), dw(:)
    integer :: i

    do i = 2, size(self%layers)
      associate (l => self%layers(i))
        if (.not. allocated(l%optimizer)) then
          l%optimizer = optimizer
          call l%optimizer%init(size(l%w) + size(l%b))
        end if
        w(1:size(l%w)) => l%w
        dw(1:size(l%dw)) => l%dw
        call l%optimizer%minimize(w, dw / batch_size)
        call l%optimizer%minimize(l%b, l%db / batch_size)
        l%dw = 0
        l%db = 0
      end associate
    end do
  end subroutine
end module
