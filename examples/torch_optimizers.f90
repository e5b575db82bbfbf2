!> PyTorch's optimizers for the networks of neural-fortran:
!>
!>     call net%train(x, y, batch_size=32, epochs=10, optimizer=torch_optimizer("AdamW(lr=1e-3)"))
!>
!> Written for neural-fortran 0.24.0.  Each layer has a copy of the optimizer, which init() is told of once, and
!> minimize(), which is pure, is called for the layer's weights and then for its biases.
module torch_optimizers
  use nf_optimizers, only: optimizer_base_type
  use optplug, only: optimizer
  implicit none
  private
  public :: torch_optimizer

  !> An optimizer of PyTorch's, written as its documentation writes it: the learning rate is in the spec.
  type, extends(optimizer_base_type) :: torch_optimizer
    private
    character(:), allocatable :: spec
    type(optimizer), allocatable :: parts(:) ! of the weights, of the biases
    logical :: is_bound(2) = .false.
    integer :: part = 1
  contains
    procedure :: init
    procedure :: minimize
  end type

  interface torch_optimizer
    module procedure from_spec
  end interface

contains

  pure function from_spec(spec) result(this)
    character(*), intent(in) :: spec
    type(torch_optimizer) :: this

    this%spec = spec
    this%learning_rate = 0
  end function

  !> Prepare a layer's copy.  An error in the spec stops the program here.
  impure elemental subroutine init(self, num_params)
    class(torch_optimizer), intent(inout) :: self
    integer, intent(in) :: num_params
    integer :: i

    if (num_params == 0 .or. allocated(self%parts)) return
    allocate (self%parts(2))
    do i = 1, 2
      call self%parts(i)%create(self%spec)
    end do
  end subroutine

  !> Step one part of a layer.  Its values are copied to PyTorch and back, so they may lie anywhere.
  pure subroutine minimize(self, param, gradient)
    class(torch_optimizer), intent(inout) :: self
    real, intent(inout) :: param(:)
    real, intent(in) :: gradient(:)

    if (self%learning_rate /= 0) error stop "torch_optimizer: learning_rate has no effect: the spec has lr"
    associate (part => self%parts(self%part))
      if (.not. self%is_bound(self%part)) call part%bind("part", "float32", shape(param))
      self%is_bound(self%part) = .true.
      call part%step(param, gradient)
    end associate
    self%part = 3 - self%part
  end subroutine
end module
