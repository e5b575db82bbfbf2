! Generated from optplug.fypp: edit that.
!> PyTorch's optimizers for Fortran, on your own arrays.
!>
!>     use optplug, only: optimizer
!>     real(real64), target :: w(3) = 0, dw(3)
!>     type(optimizer) :: opt
!>
!>     call opt%create("Adam(lr=0.1)")
!>     call opt%bind("w", w, dw)
!>     do i = 1, 100
!>       call gradient(w, dw)
!>       call opt%step()
!>     end do
!>
!> The procedures are those of the C library, whose manual is optplug.h.  What differs:
!>
!> * Errors are reported as by ALLOCATE: stat is 0 or one of the opt_e... below, and errmsg has the message.
!>   Without stat an error stops the program.  A call that fails changes nothing.
!> * An array's kind gives the dtype, and PyTorch sees its true shape, in Fortran's order.  The compiler rejects
!>   arrays that it would have to copy: data and grad must have TARGET and no gaps.  For a section with gaps,
!>   such as the inside of a field with halos, use bind_section with pointers; for GPU memory, use bind_device
!>   with addresses.
!> * An optimizer is freed with its variable (FINAL) or by free.  It owns its handle and cannot be copied.
!> * Parameter groups, the schedules' epochs and the rows of sparse gradients count from 0, as in PyTorch.
!> * It has been tested with gfortran 12.2 only.
module optplug
  use, intrinsic :: iso_c_binding, only: c_associated, c_char, c_double, c_f_pointer, &
    c_float, c_funloc, c_funptr, c_int, c_int64_t, c_intptr_t, c_loc, c_null_char, c_null_funptr, c_null_ptr, &
    c_ptr, c_size_t
  use, intrinsic :: iso_fortran_env, only: int64, int8, real32, real64
  implicit none
  private

  public :: optimizer, closure, schedule_function, log_procedure
  public :: opt_init, opt_log, opt_version, opt_error, opt_traceback, opt_warning, opt_list, opt_describe

  integer, parameter, public :: opt_ok = 0 !< Values of stat, as in optplug.h.
  integer, parameter, public :: opt_einval = -1
  integer, parameter, public :: opt_ehandle = -2
  integer, parameter, public :: opt_estate = -3
  integer, parameter, public :: opt_estart = -4
  integer, parameter, public :: opt_eruntime = -5
  integer, parameter, public :: opt_enomem = -6
  integer, parameter, public :: opt_enonfinite = -7
  integer, parameter, public :: opt_eio = -8
  integer(c_int), parameter :: opt_evaluate = 1

  abstract interface
    !> Compute the loss and, in the bound arrays, its gradients.
    !>
    !> stat is 0 on entry; set it to a negative number to make the step fail.  context is the one passed to
    !> step_closure.  An internal procedure sees the variables of its host and needs no context; but passing
    !> one makes gfortran give the program an executable stack, which some systems forbid.  iterate needs
    !> neither.
    subroutine closure(loss, stat, context)
      import :: real64
      real(real64), intent(out) :: loss
      integer, intent(inout) :: stat
      class(*), intent(inout), optional :: context
    end subroutine

    !> Replace value, an epoch, by a schedule's factor for a parameter group (for CyclicLR, x by scale_fn of x).
    subroutine schedule_function(value, group, stat, context)
      import :: real64
      real(real64), intent(inout) :: value
      integer, intent(in) :: group
      integer, intent(inout) :: stat
      class(*), intent(inout), optional :: context
    end subroutine
  end interface

  abstract interface
    !> Receive a line of the library's log; level is 1 for info and 2 for debug.
    subroutine log_procedure(level, line)
      integer, intent(in) :: level
      character(*), intent(in) :: line
    end subroutine
  end interface

  procedure(log_procedure), pointer :: told => null()

  !> A procedure of the program's and its context; those of schedules are kept in a list.
  type :: callback
    procedure(closure), pointer, nopass :: closure => null()
    procedure(schedule_function), pointer, nopass :: schedule => null()
    class(*), pointer :: context => null()
    type(callback), pointer :: next => null()
  end type

  !> A bound parameter: the C library cannot see the kind and shape of an array that is passed later.
  type :: parameter
    character(:), allocatable :: name, dtype
    integer(c_int64_t), allocatable :: shape(:)
    logical :: comes_later = .false., flat = .false.
  end type

  !> Marks an initialized optimizer: gfortran also finalizes temporaries that are not.
  integer(int64), parameter :: made = 7308332045910732149_int64

  !> One optimizer of torch.optim.
  type :: optimizer
    private
    integer(c_int) :: handle = 0
    type(callback), pointer :: schedules => null()
    type(parameter), pointer :: parameters(:) => null()
    integer(int64) :: mark = made
  contains
    procedure :: create
    procedure :: created
    procedure, private :: bind_real32, bind_real64, bind_complex32, bind_complex64, bind_shape
    generic :: bind => bind_real32, bind_real64, bind_complex32, bind_complex64, bind_shape
    procedure, private :: scalar_real32, scalar_real64, scalar_complex32, scalar_complex64
    generic :: bind_scalar => scalar_real32, scalar_real64, scalar_complex32, scalar_complex64
    procedure, private :: section_real32, section_real64, section_complex32, section_complex64
    generic :: bind_section => section_real32, section_real64, section_complex32, section_complex64
    procedure :: bind_device
    procedure, private :: step_bound, step_real32, step_real64
    generic :: step => step_bound, step_real32, step_real64
    procedure :: free => free_optimizer
    procedure :: zero_grad
    procedure :: clip_grad_norm
    procedure :: clip_grad_value
    procedure :: get
    procedure :: set
    procedure :: set_value
    procedure, private :: schedule_spec, schedule_callback, schedule_none
    generic :: schedule => schedule_spec, schedule_callback, schedule_none
    procedure, private :: schedule_step_epoch, schedule_step_metric
    generic :: schedule_step => schedule_step_epoch, schedule_step_metric
    procedure, private :: bind_sparse_real32, bind_sparse_real64
    generic :: bind_sparse => bind_sparse_real32, bind_sparse_real64
    procedure :: group
    procedure :: distribute
    procedure :: bind_block
    procedure :: step_closure
    procedure :: iterate
    procedure :: check_gradient, check_gradient_iterate
    procedure :: stream => set_stream
    procedure :: grad_scale
    procedure :: average
    procedure, private :: average_get_real32, average_get_real64, average_get_complex32, average_get_complex64
    generic :: average_get => average_get_real32, average_get_real64, average_get_complex32, &
      average_get_complex64
    procedure :: average_swap
    procedure :: call => call_method
    procedure :: checkpoint => set_checkpoint
    procedure :: attribute => set_attribute
    procedure :: attribute_get
    procedure :: save => save_file
    procedure :: load => load_file
    procedure :: save_memory
    procedure :: load_memory
    procedure :: describe
    procedure, private :: refuse_copy
    generic :: assignment(=) => refuse_copy
    final :: finish
  end type

  !> An array's address, shape and strides, as opt_bind_nd takes them.
  type :: layout
    character(60) :: mistake = "is not associated or allocated"
    integer(c_int) :: ndim = 0
    integer(c_int64_t) :: shape(7) = 0, strides(7) = 0
    type(c_ptr) :: first = c_null_ptr
  end type

  interface
    integer(c_int) function c_create(spec) bind(c, name="optplug_create")
      import :: c_char, c_int
      character(kind=c_char), intent(in) :: spec(*)
    end function

    integer(c_int) function c_step(opt) bind(c, name="optplug_step")
      import :: c_int
      integer(c_int), value :: opt
    end function

    integer(c_int) function c_free(opt) bind(c, name="optplug_free")
      import :: c_int
      integer(c_int), value :: opt
    end function

    integer(c_int) function c_zero_grad(opt) bind(c, name="optplug_zero_grad")
      import :: c_int
      integer(c_int), value :: opt
    end function

    integer(c_int) function c_clip_grad_norm(opt, max_norm, norm_type, error_if_nonfinite, total_norm) &
      bind(c, name="optplug_clip_grad_norm")
      import :: c_double, c_int
      integer(c_int), value :: opt, error_if_nonfinite
      real(c_double), value :: max_norm, norm_type
      real(c_double), intent(inout) :: total_norm
    end function

    integer(c_int) function c_clip_grad_value(opt, clip_value) bind(c, name="optplug_clip_grad_value")
      import :: c_double, c_int
      integer(c_int), value :: opt
      real(c_double), value :: clip_value
    end function

    integer(c_int) function c_get(opt, group, name, value) bind(c, name="optplug_get")
      import :: c_char, c_double, c_int
      integer(c_int), value :: opt, group
      character(kind=c_char), intent(in) :: name(*)
      real(c_double), intent(inout) :: value
    end function

    integer(c_int) function c_set(opt, group, options) bind(c, name="optplug_set")
      import :: c_char, c_int
      integer(c_int), value :: opt, group
      character(kind=c_char), intent(in) :: options(*)
    end function

    integer(c_int) function c_set_value(opt, group, name, value) bind(c, name="optplug_set_value")
      import :: c_char, c_double, c_int
      integer(c_int), value :: opt, group
      character(kind=c_char), intent(in) :: name(*)
      real(c_double), value :: value
    end function

    integer(c_int) function c_schedule(opt, spec) bind(c, name="optplug_schedule")
      import :: c_char, c_int
      integer(c_int), value :: opt
      character(kind=c_char), intent(in), optional :: spec(*)
    end function

    integer(c_int) function c_schedule_step(opt) bind(c, name="optplug_schedule_step")
      import :: c_int
      integer(c_int), value :: opt
    end function

    integer(c_int) function c_schedule_step_metric(opt, metric) bind(c, name="optplug_schedule_step_metric")
      import :: c_double, c_int
      integer(c_int), value :: opt
      real(c_double), value :: metric
    end function

    pure type(c_ptr) function c_error() bind(c, name="optplug_error")
      import :: c_ptr
    end function

    integer(c_int) function c_error_status() bind(c, name="optplug_error_status")
      import :: c_int
    end function

    type(c_ptr) function c_warning() bind(c, name="optplug_warning")
      import :: c_ptr
    end function

    type(c_ptr) function c_traceback() bind(c, name="optplug_traceback")
      import :: c_ptr
    end function

    pure subroutine lent_bind(opt, name, dtype, device, ndim, shape, data, strides, grad, grad_strides, &
      status) bind(c, name="optplug_fortran_bind_nd")
      import :: c_char, c_int, c_int64_t, c_ptr
      integer(c_int), value :: opt, ndim
      character(kind=c_char), intent(in) :: name(*), dtype(*), device(*)
      integer(c_int64_t), intent(in) :: shape(*), strides(*), grad_strides(*)
      type(c_ptr), value :: data, grad
      integer(c_int), intent(out) :: status
    end subroutine

    pure subroutine lent_step_f64(opt, data, grad, status) bind(c, name="optplug_fortran_step_f64")
      import :: c_double, c_int
      integer(c_int), value :: opt
      real(c_double), intent(inout) :: data(*)
      real(c_double), intent(in) :: grad(*)
      integer(c_int), intent(out) :: status
    end subroutine

    pure subroutine lent_step_f32(opt, data, grad, status) bind(c, name="optplug_fortran_step_f32")
      import :: c_float, c_int
      integer(c_int), value :: opt
      real(c_float), intent(inout) :: data(*)
      real(c_float), intent(in) :: grad(*)
      integer(c_int), intent(out) :: status
    end subroutine

    integer(c_int) function c_bind_sparse(opt, name, dtype, rows, columns, data, capacity, count, indices, &
      grad_rows) bind(c, name="optplug_bind_sparse")
      import :: c_char, c_int, c_int64_t, c_ptr
      integer(c_int), value :: opt
      character(kind=c_char), intent(in) :: name(*), dtype(*)
      integer(c_int64_t), value :: rows, columns, capacity
      type(c_ptr), value :: data, count, indices, grad_rows
    end function

    integer(c_int) function c_group(opt, options) bind(c, name="optplug_group")
      import :: c_char, c_int
      integer(c_int), value :: opt
      character(kind=c_char), intent(in) :: options(*)
    end function

    integer(c_int) function c_step_closure(opt, closure, user, loss) bind(c, name="optplug_step_closure")
      import :: c_double, c_funptr, c_int, c_ptr
      integer(c_int), value :: opt
      type(c_funptr), value :: closure
      type(c_ptr), value :: user
      real(c_double), intent(inout) :: loss
    end function

    integer(c_int) function c_check_gradient(opt, closure, user, error) bind(c, name="optplug_check_gradient")
      import :: c_double, c_funptr, c_int, c_ptr
      integer(c_int), value :: opt
      type(c_funptr), value :: closure
      type(c_ptr), value :: user
      real(c_double), intent(inout) :: error
    end function

    integer(c_int) function c_check_gradient_iterate(opt, loss, error) &
      bind(c, name="optplug_check_gradient_iterate")
      import :: c_double, c_int
      integer(c_int), value :: opt
      real(c_double), value :: loss
      real(c_double), intent(inout) :: error
    end function

    integer(c_int) function c_iterate(opt, loss) bind(c, name="optplug_iterate")
      import :: c_double, c_int
      integer(c_int), value :: opt
      real(c_double), value :: loss
    end function

    integer(c_int) function c_distribute(opt, placement, collective, user, rank, size) bind(c, name="optplug_distribute")
      import :: c_char, c_funptr, c_int, c_ptr
      integer(c_int), value :: opt
      character(kind=c_char), intent(in) :: placement(*)
      type(c_funptr), value :: collective
      type(c_ptr), value :: user
      integer(c_int), value :: rank, size
    end function

    integer(c_int) function c_bind_block(opt, name, ndim, global_shape, offset, shape) bind(c, name="optplug_bind_block")
      import :: c_char, c_int, c_int64_t
      integer(c_int), value :: opt, ndim
      character(kind=c_char), intent(in) :: name(*)
      integer(c_int64_t), intent(in) :: global_shape(*), offset(*), shape(*)
    end function

    integer(c_int) function c_schedule_callback(opt, spec, function, user) bind(c, name="optplug_schedule_callback")
      import :: c_char, c_funptr, c_int, c_ptr
      integer(c_int), value :: opt
      character(kind=c_char), intent(in) :: spec(*)
      type(c_funptr), value :: function
      type(c_ptr), value :: user
    end function

    integer(c_int) function c_stream(opt, stream) bind(c, name="optplug_stream")
      import :: c_int, c_ptr
      integer(c_int), value :: opt
      type(c_ptr), value :: stream
    end function

    integer(c_int) function c_grad_scale(opt, scale, found_inf) bind(c, name="optplug_grad_scale")
      import :: c_int, c_ptr
      integer(c_int), value :: opt
      type(c_ptr), value :: scale, found_inf
    end function

    integer(c_int) function c_average(opt, spec) bind(c, name="optplug_average")
      import :: c_char, c_int
      integer(c_int), value :: opt
      character(kind=c_char), intent(in) :: spec(*)
    end function

    integer(c_int) function c_average_get(opt, name, data) bind(c, name="optplug_average_get")
      import :: c_char, c_int, c_ptr
      integer(c_int), value :: opt
      character(kind=c_char), intent(in) :: name(*)
      type(c_ptr), value :: data
    end function

    integer(c_int) function c_average_swap(opt) bind(c, name="optplug_average_swap")
      import :: c_int
      integer(c_int), value :: opt
    end function

    integer(c_int) function c_call(opt, method) bind(c, name="optplug_call")
      import :: c_char, c_int
      integer(c_int), value :: opt
      character(kind=c_char), intent(in) :: method(*)
    end function

    integer(c_int) function c_checkpoint(opt, options) bind(c, name="optplug_checkpoint")
      import :: c_char, c_int
      integer(c_int), value :: opt
      character(kind=c_char), intent(in) :: options(*)
    end function

    integer(c_int) function c_attribute(opt, name, text) bind(c, name="optplug_attribute")
      import :: c_char, c_int
      integer(c_int), value :: opt
      character(kind=c_char), intent(in) :: name(*)
      character(kind=c_char), intent(in), optional :: text(*)
    end function

    type(c_ptr) function c_attribute_get(opt, name) bind(c, name="optplug_attribute_get")
      import :: c_char, c_int, c_ptr
      integer(c_int), value :: opt
      character(kind=c_char), intent(in) :: name(*)
    end function

    integer(c_int) function c_save(opt, path) bind(c, name="optplug_save")
      import :: c_char, c_int
      integer(c_int), value :: opt
      character(kind=c_char), intent(in) :: path(*)
    end function

    integer(c_int) function c_load(opt, path) bind(c, name="optplug_load")
      import :: c_char, c_int
      integer(c_int), value :: opt
      character(kind=c_char), intent(in) :: path(*)
    end function

    integer(c_int64_t) function c_save_memory(opt, buffer, size) bind(c, name="optplug_save_memory")
      import :: c_int, c_int64_t, c_ptr
      integer(c_int), value :: opt
      type(c_ptr), value :: buffer
      integer(c_int64_t), value :: size
    end function

    integer(c_int) function c_load_memory(opt, buffer, size) bind(c, name="optplug_load_memory")
      import :: c_int, c_int64_t, c_ptr
      integer(c_int), value :: opt
      type(c_ptr), value :: buffer
      integer(c_int64_t), value :: size
    end function

    integer(c_int) function c_init(options) bind(c, name="optplug_init")
      import :: c_char, c_int
      character(kind=c_char), intent(in) :: options(*)
    end function

    integer(c_int) function c_log(function, user) bind(c, name="optplug_log")
      import :: c_funptr, c_int, c_ptr
      type(c_funptr), value :: function
      type(c_ptr), value :: user
    end function

    type(c_ptr) function c_describe(opt) bind(c, name="optplug_describe")
      import :: c_int, c_ptr
      integer(c_int), value :: opt
    end function

    type(c_ptr) function c_list(kind) bind(c, name="optplug_list")
      import :: c_char, c_ptr
      character(kind=c_char), intent(in) :: kind(*)
    end function

    type(c_ptr) function c_version() bind(c, name="optplug_version")
      import :: c_ptr
    end function

    pure subroutine c_memcpy(to, from, n) bind(c, name="memcpy")
      import :: c_char, c_ptr, c_size_t
      character(kind=c_char), intent(inout) :: to(*)
      type(c_ptr), value :: from
      integer(c_size_t), value :: n
    end subroutine

    pure integer(c_size_t) function c_strlen(text) bind(c, name="strlen")
      import :: c_ptr, c_size_t
      type(c_ptr), intent(in), value :: text
    end function
  end interface

contains
  ! ---- one optimizer, from creation to the end ----

  !> Create an optimizer of torch.optim from a constructor call: "SGD(lr=0.1, momentum=0.9)".
  subroutine create(self, spec, stat, errmsg)
    class(optimizer), intent(inout) :: self
    character(*), intent(in) :: spec
    integer, intent(out), optional :: stat
    character(*), intent(inout), optional :: errmsg
    integer(c_int) :: status

    if (self%created()) then
      call settle(int(opt_estate, c_int), stat, errmsg, "this optimizer exists already: call free first")
      return
    end if
    status = c_create(trim(spec) // c_null_char)
    if (status > 0) then
      self%handle = status
      self%mark = made
      allocate (self%parameters(0))
    end if
    call settle(status, stat, errmsg)
  end subroutine

  !> Whether this optimizer exists: create has succeeded, and free was not called since.
  pure logical function created(self)
    class(optimizer), intent(in) :: self

    created = self%handle /= 0 .and. self%mark == made
  end function

  !> Lend the optimizer one parameter, an array of rank 1 to 7, and the array that receives its gradient.
  !>
  !> Both stay yours, are read and written in place, and must outlive the optimizer or the next bind of the
  !> same name.  Bind every parameter before the first step.  With flat=.true. PyTorch sees one long vector, in
  !> the order of memory: LBFGS requires it for arrays of rank 2 and more, Adafactor and Muon need the rows and
  !> columns, and the others compute the same either way.
  !>
  !> If a dummy argument lacks TARGET, declare it TARGET, and the variable that is passed to it too.  If you
  !> cannot change that, bind a shape and pass the arrays to each step(data, grad), which copies them.
  subroutine bind_real32(self, name, data, grad, stat, errmsg, flat)
    class(optimizer), intent(inout) :: self
    character(*), intent(in) :: name
    real(real32), pointer, contiguous, intent(in) :: data(..), grad(..)
    integer, intent(out), optional :: stat
    character(*), intent(inout), optional :: errmsg
    logical, intent(in), optional :: flat
    type(layout) :: of_data, of_grad

    if (associated(data)) of_data = without_gaps(shape(data, int64), c_loc(data))
    if (associated(grad)) of_grad = without_gaps(shape(grad, int64), c_loc(grad))
    call bind_layouts(self, name, "float32", of_data, of_grad, stat, errmsg, flat=flat)
  end subroutine

  subroutine bind_real64(self, name, data, grad, stat, errmsg, flat)
    class(optimizer), intent(inout) :: self
    character(*), intent(in) :: name
    real(real64), pointer, contiguous, intent(in) :: data(..), grad(..)
    integer, intent(out), optional :: stat
    character(*), intent(inout), optional :: errmsg
    logical, intent(in), optional :: flat
    type(layout) :: of_data, of_grad

    if (associated(data)) of_data = without_gaps(shape(data, int64), c_loc(data))
    if (associated(grad)) of_grad = without_gaps(shape(grad, int64), c_loc(grad))
    call bind_layouts(self, name, "float64", of_data, of_grad, stat, errmsg, flat=flat)
  end subroutine

  subroutine bind_complex32(self, name, data, grad, stat, errmsg, flat)
    class(optimizer), intent(inout) :: self
    character(*), intent(in) :: name
    complex(real32), pointer, contiguous, intent(in) :: data(..), grad(..)
    integer, intent(out), optional :: stat
    character(*), intent(inout), optional :: errmsg
    logical, intent(in), optional :: flat
    type(layout) :: of_data, of_grad

    if (associated(data)) of_data = without_gaps(shape(data, int64), c_loc(data))
    if (associated(grad)) of_grad = without_gaps(shape(grad, int64), c_loc(grad))
    call bind_layouts(self, name, "complex64", of_data, of_grad, stat, errmsg, flat=flat)
  end subroutine

  subroutine bind_complex64(self, name, data, grad, stat, errmsg, flat)
    class(optimizer), intent(inout) :: self
    character(*), intent(in) :: name
    complex(real64), pointer, contiguous, intent(in) :: data(..), grad(..)
    integer, intent(out), optional :: stat
    character(*), intent(inout), optional :: errmsg
    logical, intent(in), optional :: flat
    type(layout) :: of_data, of_grad

    if (associated(data)) of_data = without_gaps(shape(data, int64), c_loc(data))
    if (associated(grad)) of_grad = without_gaps(shape(grad, int64), c_loc(grad))
    call bind_layouts(self, name, "complex128", of_data, of_grad, stat, errmsg, flat=flat)
  end subroutine

  !> Lend the optimizer a scalar parameter.
  subroutine scalar_real32(self, name, data, grad, stat, errmsg)
    class(optimizer), intent(inout) :: self
    character(*), intent(in) :: name
    real(real32), pointer, intent(in) :: data, grad
    integer, intent(out), optional :: stat
    character(*), intent(inout), optional :: errmsg
    type(layout) :: of_data, of_grad

    if (associated(data)) of_data = without_gaps([integer(int64) ::], c_loc(data))
    if (associated(grad)) of_grad = without_gaps([integer(int64) ::], c_loc(grad))
    call bind_layouts(self, name, "float32", of_data, of_grad, stat, errmsg)
  end subroutine

  subroutine scalar_real64(self, name, data, grad, stat, errmsg)
    class(optimizer), intent(inout) :: self
    character(*), intent(in) :: name
    real(real64), pointer, intent(in) :: data, grad
    integer, intent(out), optional :: stat
    character(*), intent(inout), optional :: errmsg
    type(layout) :: of_data, of_grad

    if (associated(data)) of_data = without_gaps([integer(int64) ::], c_loc(data))
    if (associated(grad)) of_grad = without_gaps([integer(int64) ::], c_loc(grad))
    call bind_layouts(self, name, "float64", of_data, of_grad, stat, errmsg)
  end subroutine

  subroutine scalar_complex32(self, name, data, grad, stat, errmsg)
    class(optimizer), intent(inout) :: self
    character(*), intent(in) :: name
    complex(real32), pointer, intent(in) :: data, grad
    integer, intent(out), optional :: stat
    character(*), intent(inout), optional :: errmsg
    type(layout) :: of_data, of_grad

    if (associated(data)) of_data = without_gaps([integer(int64) ::], c_loc(data))
    if (associated(grad)) of_grad = without_gaps([integer(int64) ::], c_loc(grad))
    call bind_layouts(self, name, "complex64", of_data, of_grad, stat, errmsg)
  end subroutine

  subroutine scalar_complex64(self, name, data, grad, stat, errmsg)
    class(optimizer), intent(inout) :: self
    character(*), intent(in) :: name
    complex(real64), pointer, intent(in) :: data, grad
    integer, intent(out), optional :: stat
    character(*), intent(inout), optional :: errmsg
    type(layout) :: of_data, of_grad

    if (associated(data)) of_data = without_gaps([integer(int64) ::], c_loc(data))
    if (associated(grad)) of_grad = without_gaps([integer(int64) ::], c_loc(grad))
    call bind_layouts(self, name, "complex128", of_data, of_grad, stat, errmsg)
  end subroutine

  !> Lend the optimizer a section of an array, of rank 1 to 3, by pointers to it and to its gradient:
  !>
  !>     inside => u(1:nx, 1:ny)
  !>     call opt%bind_section("u", inside, gradient)
  subroutine section_real32(self, name, data, grad, stat, errmsg)
    class(optimizer), intent(inout) :: self
    character(*), intent(in) :: name
    real(real32), pointer :: data(..), grad(..)
    integer, intent(out), optional :: stat
    character(*), intent(inout), optional :: errmsg

    call bind_layouts(self, name, "float32", layout_real32(data), layout_real32(grad), stat, errmsg)
  end subroutine

  subroutine section_real64(self, name, data, grad, stat, errmsg)
    class(optimizer), intent(inout) :: self
    character(*), intent(in) :: name
    real(real64), pointer :: data(..), grad(..)
    integer, intent(out), optional :: stat
    character(*), intent(inout), optional :: errmsg

    call bind_layouts(self, name, "float64", layout_real64(data), layout_real64(grad), stat, errmsg)
  end subroutine

  subroutine section_complex32(self, name, data, grad, stat, errmsg)
    class(optimizer), intent(inout) :: self
    character(*), intent(in) :: name
    complex(real32), pointer :: data(..), grad(..)
    integer, intent(out), optional :: stat
    character(*), intent(inout), optional :: errmsg

    call bind_layouts(self, name, "complex64", layout_complex32(data), layout_complex32(grad), stat, errmsg)
  end subroutine

  subroutine section_complex64(self, name, data, grad, stat, errmsg)
    class(optimizer), intent(inout) :: self
    character(*), intent(in) :: name
    complex(real64), pointer :: data(..), grad(..)
    integer, intent(out), optional :: stat
    character(*), intent(inout), optional :: errmsg

    call bind_layouts(self, name, "complex128", layout_complex64(data), layout_complex64(grad), stat, errmsg)
  end subroutine

  !> Lend the optimizer a parameter in the memory of a device, "cuda:0", by its address and its gradient's:
  !>
  !>     !$acc host_data use_device(w, dw)
  !>     call opt%bind_device("w", "float32", "cuda:0", [nx, ny], c_loc(w), c_loc(dw))
  !>     !$acc end host_data
  !>
  !> dtype is PyTorch's name, such as "bfloat16".  strides count elements; without them an array has no gaps, and
  !> is in Fortran's order.  The compiler cannot check what is at an address: kind and shape must be right.
  subroutine bind_device(self, name, dtype, device, shape, data, grad, strides, grad_strides, stat, errmsg)
    class(optimizer), intent(inout) :: self
    character(*), intent(in) :: name, dtype, device
    integer, intent(in) :: shape(:)
    type(c_ptr), intent(in) :: data, grad
    integer, intent(in), optional :: strides(:), grad_strides(:)
    integer, intent(out), optional :: stat
    character(*), intent(inout), optional :: errmsg
    type(layout) :: of_data, of_grad

    of_data = without_gaps(int(shape, int64), data)
    of_grad = without_gaps(int(shape, int64), grad)
    if (present(strides)) call stride(of_data, strides)
    if (present(grad_strides)) call stride(of_grad, grad_strides)
    call bind_layouts(self, name, dtype, of_data, of_grad, stat, errmsg, device)
  end subroutine

  !> Bind a parameter of this shape whose values you pass to each step(data, grad).  Pure, as that is.
  pure subroutine bind_shape(self, name, dtype, shape, stat, errmsg)
    class(optimizer), intent(inout) :: self
    character(*), intent(in) :: name, dtype
    integer, intent(in) :: shape(:)
    integer, intent(out), optional :: stat
    character(*), intent(inout), optional :: errmsg
    type(layout) :: nowhere

    nowhere = without_gaps(int(shape, int64), c_null_ptr)
    call bind_layouts(self, name, dtype, nowhere, nowhere, stat, errmsg)
  end subroutine

  pure subroutine bind_layouts(self, name, dtype, data, grad, stat, errmsg, device, flat)
    class(optimizer), intent(inout) :: self
    character(*), intent(in) :: name, dtype
    type(layout), intent(in) :: data, grad
    integer, intent(out), optional :: stat
    character(*), intent(inout), optional :: errmsg
    character(*), intent(in), optional :: device
    logical, intent(in), optional :: flat
    type(layout) :: seen
    logical :: is_flat
    character(:), allocatable :: mistake, place
    integer(c_int) :: status

    place = "cpu"
    if (present(device)) place = trim(device)
    mistake = ""
    if (grad%mistake /= "") mistake = "grad " // trim(grad%mistake)
    if (data%mistake /= "") mistake = "data " // trim(data%mistake)
    if (mistake == "" .and. (data%ndim /= grad%ndim .or. any(data%shape /= grad%shape))) &
      mistake = "data has shape " // shown(data%shape(:data%ndim)) // " and grad " // &
        shown(grad%shape(:grad%ndim)) // ": they must be the same"
    if (mistake /= "") then
      call settle(int(opt_einval, c_int), stat, errmsg, "parameter '" // trim(name) // "': " // mistake)
      return
    end if
    is_flat = .false.
    if (present(flat)) is_flat = flat
    seen = data
    if (is_flat) seen = without_gaps([product(data%shape(:data%ndim))], data%first)
    call lent_bind(self%handle, trim(name) // c_null_char, trim(dtype) // c_null_char, place // c_null_char, &
      seen%ndim, seen%shape, data%first, seen%strides, grad%first, &
      merge(seen%strides, grad%strides, is_flat), status)
    if (status == opt_ok) call note(self, parameter(trim(name), trim(dtype), data%shape(:data%ndim), &
      .not. c_associated(data%first), is_flat))
    call settle(status, stat, errmsg)
  end subroutine

  !> Make one step: update every bound array from its gradient.
  subroutine step_bound(self, stat, errmsg)
    class(optimizer), intent(inout) :: self
    integer, intent(out), optional :: stat
    character(*), intent(inout), optional :: errmsg

    call settle(c_step(self%handle), stat, errmsg)
  end subroutine

  !> Make one step with arrays that are borrowed for this call only, and copied: pack every parameter that was
  !> bound by its shape back to back.  Pure, for use in pure procedures.
  pure subroutine step_real32(self, data, grad, stat, errmsg)
    class(optimizer), intent(inout) :: self
    real(real32), intent(inout) :: data(:)
    real(real32), intent(in) :: grad(:)
    integer, intent(out), optional :: stat
    character(*), intent(inout), optional :: errmsg
    character(:), allocatable :: mistake
    integer(c_int) :: status

    mistake = wrong_size(self, "data", size(data, kind=int64))
    if (mistake == "") mistake = wrong_size(self, "grad", size(grad, kind=int64))
    if (mistake /= "") then
      call settle(int(opt_einval, c_int), stat, errmsg, mistake)
      return
    end if
    call lent_step_f32(self%handle, data, grad, status)
    call settle(status, stat, errmsg)
  end subroutine

  pure subroutine step_real64(self, data, grad, stat, errmsg)
    class(optimizer), intent(inout) :: self
    real(real64), intent(inout) :: data(:)
    real(real64), intent(in) :: grad(:)
    integer, intent(out), optional :: stat
    character(*), intent(inout), optional :: errmsg
    character(:), allocatable :: mistake
    integer(c_int) :: status

    mistake = wrong_size(self, "data", size(data, kind=int64))
    if (mistake == "") mistake = wrong_size(self, "grad", size(grad, kind=int64))
    if (mistake /= "") then
      call settle(int(opt_einval, c_int), stat, errmsg, mistake)
      return
    end if
    call lent_step_f64(self%handle, data, grad, status)
    call settle(status, stat, errmsg)
  end subroutine

  !> Free an optimizer and its state.  The bound arrays are left unchanged.
  subroutine free_optimizer(self, stat, errmsg)
    class(optimizer), intent(inout) :: self
    integer, intent(out), optional :: stat
    character(*), intent(inout), optional :: errmsg
    integer(c_int) :: status

    status = c_free(self%handle)
    if (status == opt_ok) call forget(self)
    call settle(status, stat, errmsg)
  end subroutine

  ! ---- gradients, between computing them and the step ----

  !> Set every gradient to zero, in your arrays.
  subroutine zero_grad(self, stat, errmsg)
    class(optimizer), intent(inout) :: self
    integer, intent(out), optional :: stat
    character(*), intent(inout), optional :: errmsg

    call settle(c_zero_grad(self%handle), stat, errmsg)
  end subroutine

  !> Scale all gradients together so that their norm is at most max_norm.
  !>
  !> norm_type is the p of the p-norm, 2 if absent; total_norm receives the norm before scaling.
  !> With error_if_nonfinite, a norm that is inf or nan is opt_enonfinite, and nothing is scaled.
  subroutine clip_grad_norm(self, max_norm, norm_type, error_if_nonfinite, total_norm, stat, errmsg)
    class(optimizer), intent(inout) :: self
    real(real64), intent(in) :: max_norm
    real(real64), intent(in), optional :: norm_type
    logical, intent(in), optional :: error_if_nonfinite
    real(real64), intent(out), optional :: total_norm
    integer, intent(out), optional :: stat
    character(*), intent(inout), optional :: errmsg
    real(c_double) :: p, norm
    logical :: refuse
    integer(c_int) :: status

    p = 2
    if (present(norm_type)) p = norm_type
    refuse = .false.
    if (present(error_if_nonfinite)) refuse = error_if_nonfinite
    norm = 0
    status = c_clip_grad_norm(self%handle, max_norm, p, merge(1_c_int, 0_c_int, refuse), norm)
    if (present(total_norm)) total_norm = norm
    call settle(status, stat, errmsg)
  end subroutine

  !> Clamp each value of each gradient to -clip_value ... clip_value.
  subroutine clip_grad_value(self, clip_value, stat, errmsg)
    class(optimizer), intent(inout) :: self
    real(real64), intent(in) :: clip_value
    integer, intent(out), optional :: stat
    character(*), intent(inout), optional :: errmsg

    call settle(c_clip_grad_value(self%handle, clip_value), stat, errmsg)
  end subroutine

  ! ---- hyperparameters and learning-rate schedules ----

  !> Get one hyperparameter of a parameter group, 0 for the first, as a number: "lr", "betas[0]".
  subroutine get(self, group, name, value, stat, errmsg)
    class(optimizer), intent(in) :: self
    integer, intent(in) :: group
    character(*), intent(in) :: name
    real(real64), intent(inout) :: value
    integer, intent(out), optional :: stat
    character(*), intent(inout), optional :: errmsg

    call settle(c_get(self%handle, int(group, c_int), trim(name) // c_null_char, value), stat, errmsg)
  end subroutine

  !> Set hyperparameters of a group, or of all (-1): "lr=1e-4, betas=(0.9, 0.99)".
  subroutine set(self, group, options, stat, errmsg)
    class(optimizer), intent(inout) :: self
    integer, intent(in) :: group
    character(*), intent(in) :: options
    integer, intent(out), optional :: stat
    character(*), intent(inout), optional :: errmsg

    call settle(c_set(self%handle, int(group, c_int), trim(options) // c_null_char), stat, errmsg)
  end subroutine

  !> Set one hyperparameter of a group, or of all (-1), named as in get: for values that change at every step.
  subroutine set_value(self, group, name, value, stat, errmsg)
    class(optimizer), intent(inout) :: self
    integer, intent(in) :: group
    character(*), intent(in) :: name
    real(real64), intent(in) :: value
    integer, intent(out), optional :: stat
    character(*), intent(inout), optional :: errmsg

    call settle(c_set_value(self%handle, int(group, c_int), trim(name) // c_null_char, value), stat, errmsg)
  end subroutine

  !> Attach a scheduler of torch.optim.lr_scheduler, once every parameter is bound: "StepLR(step_size=30)".
  subroutine schedule_spec(self, spec, stat, errmsg)
    class(optimizer), intent(inout) :: self
    character(*), intent(in) :: spec
    integer, intent(out), optional :: stat
    character(*), intent(inout), optional :: errmsg

    call settle(c_schedule(self%handle, trim(spec) // c_null_char), stat, errmsg)
  end subroutine

  !> Attach a scheduler that calls a function of yours: the lr_lambda of LambdaLR and MultiplicativeLR,
  !> "LambdaLR()", or the scale_fn of CyclicLR.
  !>
  !> The function must be a module procedure; it and its context must outlive the optimizer.
  subroutine schedule_callback(self, spec, function, context, stat, errmsg)
    class(optimizer), intent(inout) :: self
    character(*), intent(in) :: spec
    procedure(schedule_function) :: function
    class(*), intent(inout), target, optional :: context
    integer, intent(out), optional :: stat
    character(*), intent(inout), optional :: errmsg
    type(callback), pointer :: kept
    integer(c_int) :: status

    allocate (kept)
    kept%schedule => function
    if (present(context)) kept%context => context
    status = c_schedule_callback(self%handle, trim(spec) // c_null_char, c_funloc(call_schedule), c_loc(kept))
    if (status == opt_ok) then
      kept%next => self%schedules
      self%schedules => kept
    else
      deallocate (kept)
    end if
    call settle(status, stat, errmsg)
  end subroutine

  !> Remove all schedulers and their functions; learning rates keep their current values.
  subroutine schedule_none(self, stat, errmsg)
    class(optimizer), intent(inout) :: self
    integer, intent(out), optional :: stat
    character(*), intent(inout), optional :: errmsg
    integer(c_int) :: status

    status = c_schedule(self%handle)
    if (status == opt_ok) call forget_schedules(self)
    call settle(status, stat, errmsg)
  end subroutine

  !> Step all schedulers except ReduceLROnPlateau: once per step or per epoch, whichever unit they use.
  subroutine schedule_step_epoch(self, stat, errmsg)
    class(optimizer), intent(inout) :: self
    integer, intent(out), optional :: stat
    character(*), intent(inout), optional :: errmsg

    call settle(c_schedule_step(self%handle), stat, errmsg)
  end subroutine

  !> Step ReduceLROnPlateau, which watches a loss; or if none is attached, CosineAnnealingWarmRestarts, for which
  !> the value is the epoch.
  subroutine schedule_step_metric(self, metric, stat, errmsg)
    class(optimizer), intent(inout) :: self
    real(real64), intent(in) :: metric
    integer, intent(out), optional :: stat
    character(*), intent(inout), optional :: errmsg

    call settle(c_schedule_step_metric(self%handle, metric), stat, errmsg)
  end subroutine

  ! ---- sparse gradients and groups ----

  !> Lend the optimizer a table of parameters whose gradient is zero except in a few rows: an embedding.
  !>
  !> PyTorch's rows are columns here: data(:, 1 + indices(i)) has the gradient grad_rows(:, i), for i from 1 to
  !> count.  indices count from 0.
  subroutine bind_sparse_real32(self, name, data, count, indices, grad_rows, stat, errmsg)
    class(optimizer), intent(inout) :: self
    character(*), intent(in) :: name
    real(real32), pointer, intent(in) :: data(:, :), grad_rows(:, :)
    integer(int64), pointer, intent(in) :: count, indices(:)
    integer, intent(out), optional :: stat
    character(*), intent(inout), optional :: errmsg
    character(:), allocatable :: mistake

    mistake = ""
    if (.not. (associated(data) .and. associated(count) .and. associated(indices) .and. &
      associated(grad_rows))) then
      mistake = "an array is not associated or allocated"
    else if (.not. (is_contiguous(data) .and. is_contiguous(indices) .and. is_contiguous(grad_rows))) then
      mistake = "data, indices and grad_rows must be contiguous: no sections"
    else if (size(grad_rows, 1) /= size(data, 1) .or. size(grad_rows, 2) /= size(indices)) then
      mistake = "grad_rows is of shape " // shown(shape(grad_rows, int64)) // ", and must be of " // &
        shown([size(data, 1, int64), size(indices, kind=int64)])
    end if
    if (mistake /= "") then
      call settle(int(opt_einval, c_int), stat, errmsg, "parameter '" // trim(name) // "': " // mistake)
      return
    end if
    call bind_table(self, name, "float32", shape(data, int64), c_loc(data), size(indices, kind=int64), &
      c_loc(count), c_loc(indices), c_loc(grad_rows), stat, errmsg)
  end subroutine

  subroutine bind_sparse_real64(self, name, data, count, indices, grad_rows, stat, errmsg)
    class(optimizer), intent(inout) :: self
    character(*), intent(in) :: name
    real(real64), pointer, intent(in) :: data(:, :), grad_rows(:, :)
    integer(int64), pointer, intent(in) :: count, indices(:)
    integer, intent(out), optional :: stat
    character(*), intent(inout), optional :: errmsg
    character(:), allocatable :: mistake

    mistake = ""
    if (.not. (associated(data) .and. associated(count) .and. associated(indices) .and. &
      associated(grad_rows))) then
      mistake = "an array is not associated or allocated"
    else if (.not. (is_contiguous(data) .and. is_contiguous(indices) .and. is_contiguous(grad_rows))) then
      mistake = "data, indices and grad_rows must be contiguous: no sections"
    else if (size(grad_rows, 1) /= size(data, 1) .or. size(grad_rows, 2) /= size(indices)) then
      mistake = "grad_rows is of shape " // shown(shape(grad_rows, int64)) // ", and must be of " // &
        shown([size(data, 1, int64), size(indices, kind=int64)])
    end if
    if (mistake /= "") then
      call settle(int(opt_einval, c_int), stat, errmsg, "parameter '" // trim(name) // "': " // mistake)
      return
    end if
    call bind_table(self, name, "float64", shape(data, int64), c_loc(data), size(indices, kind=int64), &
      c_loc(count), c_loc(indices), c_loc(grad_rows), stat, errmsg)
  end subroutine

  subroutine bind_table(self, name, dtype, shape, data, capacity, count, indices, grad_rows, stat, errmsg)
    class(optimizer), intent(inout) :: self
    character(*), intent(in) :: name, dtype
    integer(int64), intent(in) :: shape(2), capacity
    type(c_ptr), intent(in) :: data, count, indices, grad_rows
    integer, intent(out), optional :: stat
    character(*), intent(inout), optional :: errmsg
    integer(c_int) :: status

    status = c_bind_sparse(self%handle, trim(name) // c_null_char, dtype // c_null_char, shape(2), shape(1), &
      data, capacity, count, indices, grad_rows)
    if (status == opt_ok) call note(self, parameter(trim(name), dtype, [shape(2), shape(1)], .false.))
    call settle(status, stat, errmsg)
  end subroutine

  !> Start a parameter group: parameters bound from now on use these options, "lr=1e-4, weight_decay=0".
  subroutine group(self, options, stat, errmsg)
    class(optimizer), intent(inout) :: self
    character(*), intent(in) :: options
    integer, intent(out), optional :: stat
    character(*), intent(inout), optional :: errmsg

    call settle(c_group(self%handle, trim(options) // c_null_char), stat, errmsg)
  end subroutine

  !> Let ranks of a parallel program step this optimizer together.  placement says how the parameters bound from
  !> now on are spread: "Replicate()", "Replicate(), Partial('sum')", "Replicate(), Replicate()" or "Shard(0)".
  !>
  !> Over MPI, call distribute of the module optplug_mpi instead.  This one takes a collective written in C, as
  !> optplug.h describes it; without one the ranks are those of torch.distributed.
  subroutine distribute(self, placement, collective, user, rank, size, stat, errmsg)
    class(optimizer), intent(inout) :: self
    character(*), intent(in) :: placement
    type(c_funptr), intent(in), optional :: collective
    type(c_ptr), intent(in), optional :: user
    integer, intent(in), optional :: rank, size
    integer, intent(out), optional :: stat
    character(*), intent(inout), optional :: errmsg
    type(c_funptr) :: function
    type(c_ptr) :: context
    integer(c_int) :: its_rank, its_size

    function = c_null_funptr
    context = c_null_ptr
    its_rank = 0
    its_size = 0
    if (present(collective)) function = collective
    if (present(user)) context = user
    if (present(rank)) its_rank = int(rank, c_int)
    if (present(size)) its_size = int(size, c_int)
    call settle(c_distribute(self%handle, trim(placement) // c_null_char, function, context, its_rank, its_size), &
      stat, errmsg)
  end subroutine

  !> Say which block of a grid this rank's part of a "Shard(0)" parameter is.
  !>
  !> offset is where the block begins in the grid, counting from 0.  For a parameter bound as a vector, shape is
  !> the block's shape, in Fortran's order.
  subroutine bind_block(self, name, global_shape, offset, shape, stat, errmsg)
    class(optimizer), intent(inout) :: self
    character(*), intent(in) :: name
    integer, intent(in) :: global_shape(:), offset(:)
    integer, intent(in), optional :: shape(:)
    integer, intent(out), optional :: stat
    character(*), intent(inout), optional :: errmsg
    integer(c_int64_t) :: its_shape(size(global_shape))
    integer :: order(size(global_shape)), i, n
    logical :: is_vector, is_wrong

    n = size(global_shape)
    i = found(self, trim(name))
    is_vector = present(shape)
    is_wrong = size(offset) /= n
    if (present(shape)) then
      is_wrong = is_wrong .or. size(shape) /= n
    else if (i > 0) then
      is_vector = self%parameters(i)%flat
      is_wrong = is_wrong .or. size(self%parameters(i)%shape) /= n
    end if
    if (is_wrong) then
      call settle(int(opt_einval, c_int), stat, errmsg, "parameter '" // trim(name) // &
        "': global_shape, offset and the block's shape must have equally many values; for a vector, pass shape")
      return
    end if
    its_shape = int(global_shape, c_int64_t)
    if (i > 0 .and. .not. present(shape)) its_shape = self%parameters(i)%shape
    if (present(shape)) its_shape = int(shape, c_int64_t)
    order = [(i, i = 1, n)]
    if (is_vector) order = order(n:1:-1) ! its memory is read in C's order
    call settle(c_bind_block(self%handle, trim(name) // c_null_char, int(n, c_int), &
      int(global_shape(order), c_int64_t), int(offset(order), c_int64_t), its_shape(order)), stat, errmsg)
  end subroutine

  ! ---- functions of yours that a step calls ----

  !> Make one step with a closure, which LBFGS calls several times and other classes once.
  !>
  !> loss receives the first loss.  evaluate may be an internal procedure, or receive a context.  It may query
  !> and clip the same optimizer, but not step, bind or free it.
  subroutine step_closure(self, evaluate, loss, context, stat, errmsg)
    class(optimizer), intent(inout) :: self
    procedure(closure) :: evaluate
    real(real64), intent(out), optional :: loss
    class(*), intent(inout), target, optional :: context
    integer, intent(out), optional :: stat
    character(*), intent(inout), optional :: errmsg
    type(callback), target :: this
    real(c_double) :: first
    integer(c_int) :: status

    this%closure => evaluate
    if (present(context)) this%context => context
    first = 0
    status = c_step_closure(self%handle, c_funloc(call_closure), c_loc(this), first)
    if (present(loss)) loss = first
    call settle(status, stat, errmsg)
  end subroutine

  !> Check a closure's gradients against differences of its losses, at the parameters as they are.
  !>
  !> A wrong gradient is an error that names the parameter and the place.  error receives the largest relative
  !> error of a parameter's gradient.
  subroutine check_gradient(self, evaluate, error, context, stat, errmsg)
    class(optimizer), intent(inout) :: self
    procedure(closure) :: evaluate
    real(real64), intent(out), optional :: error
    class(*), intent(inout), target, optional :: context
    integer, intent(out), optional :: stat
    character(*), intent(inout), optional :: errmsg
    type(callback), target :: this
    real(c_double) :: found
    integer(c_int) :: status

    this%closure => evaluate
    if (present(context)) this%context => context
    found = 0
    status = c_check_gradient(self%handle, c_funloc(call_closure), c_loc(this), found)
    if (present(error)) error = found
    call settle(status, stat, errmsg)
  end subroutine

  !> Make the same step by reverse communication: compute loss and gradients as long as more is true.
  !>
  !>     do
  !>       call opt%iterate(loss, more)
  !>       if (.not. more) exit
  !>       call loss_and_gradient(w, loss, dw)
  !>     end do
  !>
  !> The first call of a step ignores loss.
  subroutine iterate(self, loss, more, stat, errmsg)
    class(optimizer), intent(inout) :: self
    real(real64), intent(in) :: loss
    logical, intent(out) :: more
    integer, intent(out), optional :: stat
    character(*), intent(inout), optional :: errmsg
    integer(c_int) :: status

    status = c_iterate(self%handle, loss)
    more = status == opt_evaluate
    call settle(status, stat, errmsg)
  end subroutine

  !> Make the same check by reverse communication, as iterate makes a step.
  subroutine check_gradient_iterate(self, loss, more, error, stat, errmsg)
    class(optimizer), intent(inout) :: self
    real(real64), intent(in) :: loss
    logical, intent(out) :: more
    real(real64), intent(out), optional :: error
    integer, intent(out), optional :: stat
    character(*), intent(inout), optional :: errmsg
    real(c_double) :: found
    integer(c_int) :: status

    found = 0
    status = c_check_gradient_iterate(self%handle, loss, found)
    more = status == opt_evaluate
    if (present(error)) error = found
    call settle(status, stat, errmsg)
  end subroutine

  recursive integer(c_int) function call_closure(user, value) bind(c, name="") result(status)
    type(c_ptr), value :: user
    real(c_double), intent(inout) :: value
    type(callback), pointer :: this
    integer :: stat

    call c_f_pointer(user, this)
    stat = 0
    if (associated(this%context)) then
      call this%closure(value, stat, this%context)
    else
      call this%closure(value, stat)
    end if
    status = -abs(int(stat, c_int))
  end function

  recursive integer(c_int) function call_schedule(user, value) bind(c, name="") result(status)
    type(c_ptr), value :: user
    real(c_double), intent(inout) :: value(2)
    type(callback), pointer :: this
    integer :: stat

    call c_f_pointer(user, this)
    stat = 0
    if (associated(this%context)) then
      call this%schedule(value(1), int(value(2)), stat, this%context)
    else
      call this%schedule(value(1), int(value(2)), stat)
    end if
    status = -abs(int(stat, c_int))
  end function

  ! ---- GPUs ----

  !> From now on, run the optimizer's work for a GPU on your stream, a cudaStream_t of CUDA's C interface;
  !> c_null_ptr returns to PyTorch's current one.  Convert an integer by transfer(it, c_null_ptr).
  !>
  !> Calls then return before the work is done, as a kernel launch does: see opt_stream in optplug.h.
  subroutine set_stream(self, stream, stat, errmsg)
    class(optimizer), intent(inout) :: self
    type(c_ptr), intent(in) :: stream
    integer, intent(out), optional :: stat
    character(*), intent(inout), optional :: errmsg

    call settle(c_stream(self%handle, stream), stat, errmsg)
  end subroutine

  !> From now on, divide the gradients in each step by the value at scale, the factor of your loss, and skip
  !> steps where the value at found_inf is 1 rather than 0.
  !>
  !> Each is the address of one real(real32) on the parameters' device, or c_null_ptr for none.  Both values must
  !> outlive the optimizer or the next grad_scale.
  subroutine grad_scale(self, scale, found_inf, stat, errmsg)
    class(optimizer), intent(inout) :: self
    type(c_ptr), intent(in) :: scale, found_inf
    integer, intent(out), optional :: stat
    character(*), intent(inout), optional :: errmsg

    call settle(c_grad_scale(self%handle, scale, found_inf), stat, errmsg)
  end subroutine

  ! ---- averages of the weights ----

  !> From now on, average the parameters after each step: "AveragedModel()" with equal weights,
  !> "AveragedModel(multi_avg_fn=get_ema_multi_avg_fn(0.999))" exponentially.
  subroutine average(self, spec, stat, errmsg)
    class(optimizer), intent(inout) :: self
    character(*), intent(in) :: spec
    integer, intent(out), optional :: stat
    character(*), intent(inout), optional :: errmsg

    call settle(c_average(self%handle, trim(spec) // c_null_char), stat, errmsg)
  end subroutine

  !> Copy the average of one parameter into an array of the same kind and shape, without gaps.
  subroutine average_get_real32(self, name, data, stat, errmsg)
    class(optimizer), intent(in) :: self
    character(*), intent(in) :: name
    real(real32), intent(inout), target :: data(..)
    integer, intent(out), optional :: stat
    character(*), intent(inout), optional :: errmsg

    call get_average(self, name, "float32", shape(data, int64), is_contiguous(data), c_loc(data), stat, errmsg)
  end subroutine

  subroutine average_get_real64(self, name, data, stat, errmsg)
    class(optimizer), intent(in) :: self
    character(*), intent(in) :: name
    real(real64), intent(inout), target :: data(..)
    integer, intent(out), optional :: stat
    character(*), intent(inout), optional :: errmsg

    call get_average(self, name, "float64", shape(data, int64), is_contiguous(data), c_loc(data), stat, errmsg)
  end subroutine

  subroutine average_get_complex32(self, name, data, stat, errmsg)
    class(optimizer), intent(in) :: self
    character(*), intent(in) :: name
    complex(real32), intent(inout), target :: data(..)
    integer, intent(out), optional :: stat
    character(*), intent(inout), optional :: errmsg

    call get_average(self, name, "complex64", shape(data, int64), is_contiguous(data), c_loc(data), stat, errmsg)
  end subroutine

  subroutine average_get_complex64(self, name, data, stat, errmsg)
    class(optimizer), intent(in) :: self
    character(*), intent(in) :: name
    complex(real64), intent(inout), target :: data(..)
    integer, intent(out), optional :: stat
    character(*), intent(inout), optional :: errmsg

    call get_average(self, name, "complex128", shape(data, int64), is_contiguous(data), c_loc(data), stat, errmsg)
  end subroutine

  subroutine get_average(self, name, dtype, shape, has_no_gaps, data, stat, errmsg)
    class(optimizer), intent(in) :: self
    character(*), intent(in) :: name, dtype
    integer(int64), intent(in) :: shape(:)
    logical, intent(in) :: has_no_gaps
    type(c_ptr), intent(in) :: data
    integer, intent(out), optional :: stat
    character(*), intent(inout), optional :: errmsg
    integer(int8), allocatable, target :: row_major(:)
    integer(int8), pointer :: bytes(:)
    integer(c_int) :: status
    integer :: i, width

    i = found(self, name)
    if (i > 0) then
      if (self%parameters(i)%dtype /= dtype .or. size(self%parameters(i)%shape) /= size(shape)) i = -i
    end if
    if (i > 0) then
      if (any(self%parameters(i)%shape /= shape)) i = -i
    end if
    if (i < 0) then
      call settle(int(opt_einval, c_int), stat, errmsg, "data is " // dtype // " of shape " // shown(shape) // &
        ", and parameter '" // trim(name) // "' is " // self%parameters(-i)%dtype // " of " // &
        shown(self%parameters(-i)%shape))
      return
    end if
    if (.not. has_no_gaps) then
      call settle(int(opt_einval, c_int), stat, errmsg, "data must have no gaps: take a whole array")
      return
    end if
    width = bytes_of(dtype)
    allocate (row_major(width * max(product(shape), 1_int64)))
    status = c_average_get(self%handle, trim(name) // c_null_char, c_loc(row_major))
    if (status == opt_ok) then
      call c_f_pointer(data, bytes, [width * product(shape)])
      if (self%parameters(i)%flat) then
        bytes = row_major
      else
        call turn(row_major, shape, width, bytes)
      end if
    end if
    call settle(status, stat, errmsg)
  end subroutine

  !> Copy values of the given size in bytes from C's order of dimensions to Fortran's.
  subroutine turn(from, shape, width, to)
    integer(int8), intent(in) :: from(:)
    integer(int64), intent(in) :: shape(:)
    integer, intent(in) :: width
    integer(int8), intent(inout) :: to(:)
    integer(int64) :: i, rest, place, strides(size(shape))
    integer :: d

    strides = column_major(shape)
    do i = 0, product(shape) - 1
      rest = i
      place = 0
      do d = size(shape), 1, -1
        place = place + mod(rest, shape(d)) * strides(d)
        rest = rest / shape(d)
      end do
      to(place * width + 1:(place + 1) * width) = from(i * width + 1:(i + 1) * width)
    end do
  end subroutine

  !> Swap the values of all parameters with their averages; the next call swaps them back.
  subroutine average_swap(self, stat, errmsg)
    class(optimizer), intent(inout) :: self
    integer, intent(out), optional :: stat
    character(*), intent(inout), optional :: errmsg

    call settle(c_average_swap(self%handle), stat, errmsg)
  end subroutine

  !> Call a method of a class outside torch.optim: "train" or "eval" of a schedule-free one.
  subroutine call_method(self, method, stat, errmsg)
    class(optimizer), intent(inout) :: self
    character(*), intent(in) :: method
    integer, intent(out), optional :: stat
    character(*), intent(inout), optional :: errmsg

    call settle(c_call(self%handle, trim(method) // c_null_char), stat, errmsg)
  end subroutine

  ! ---- checkpoints ----

  !> Choose what save writes and load restores: "parameters=True" includes the values of the parameters.
  subroutine set_checkpoint(self, options, stat, errmsg)
    class(optimizer), intent(inout) :: self
    character(*), intent(in) :: options
    integer, intent(out), optional :: stat
    character(*), intent(inout), optional :: errmsg

    call settle(c_checkpoint(self%handle, trim(options) // c_null_char), stat, errmsg)
  end subroutine

  !> Attach a text of yours, trailing blanks included, to checkpoints; without text, remove it.
  subroutine set_attribute(self, name, text, stat, errmsg)
    class(optimizer), intent(inout) :: self
    character(*), intent(in) :: name
    character(*), intent(in), optional :: text
    integer, intent(out), optional :: stat
    character(*), intent(inout), optional :: errmsg
    integer(c_int) :: status

    if (present(text)) then
      status = c_attribute(self%handle, trim(name) // c_null_char, text // c_null_char)
    else
      status = c_attribute(self%handle, trim(name) // c_null_char)
    end if
    call settle(status, stat, errmsg)
  end subroutine

  !> Get such a text.
  function attribute_get(self, name, stat, errmsg) result(text)
    class(optimizer), intent(in) :: self
    character(*), intent(in) :: name
    integer, intent(out), optional :: stat
    character(*), intent(inout), optional :: errmsg
    character(:), allocatable :: text
    type(c_ptr) :: found

    found = c_attribute_get(self%handle, trim(name) // c_null_char)
    text = text_of(found)
    call settle(merge(opt_ok, c_error_status(), c_associated(found)), stat, errmsg)
  end function

  !> Save everything the optimizer needs to resume to a file, which PyTorch can read too.
  subroutine save_file(self, path, stat, errmsg)
    class(optimizer), intent(in) :: self
    character(*), intent(in) :: path
    integer, intent(out), optional :: stat
    character(*), intent(inout), optional :: errmsg

    call settle(c_save(self%handle, trim(path) // c_null_char), stat, errmsg)
  end subroutine

  !> Resume from a file, in an optimizer of the same class with the same parameters bound.
  subroutine load_file(self, path, stat, errmsg)
    class(optimizer), intent(inout) :: self
    character(*), intent(in) :: path
    integer, intent(out), optional :: stat
    character(*), intent(inout), optional :: errmsg

    call settle(c_load(self%handle, trim(path) // c_null_char), stat, errmsg)
  end subroutine

  !> Return what save would write.
  subroutine save_memory(self, buffer, stat, errmsg)
    class(optimizer), intent(in) :: self
    integer(int8), allocatable, target, intent(inout) :: buffer(:)
    integer, intent(out), optional :: stat
    character(*), intent(inout), optional :: errmsg
    integer(int8), allocatable, target :: written(:)
    integer(c_int64_t) :: n

    n = c_save_memory(self%handle, c_null_ptr, 0_c_int64_t)
    if (n > 0) then
      allocate (written(n))
      n = c_save_memory(self%handle, c_loc(written), n)
    end if
    if (n > 0) buffer = written(:n)
    call settle(int(min(n, 0_c_int64_t), c_int), stat, errmsg)
  end subroutine

  !> Resume from what save_memory returned.
  subroutine load_memory(self, buffer, stat, errmsg)
    class(optimizer), intent(inout) :: self
    integer(int8), intent(in), target, contiguous :: buffer(:)
    integer, intent(out), optional :: stat
    character(*), intent(inout), optional :: errmsg

    call settle(c_load_memory(self%handle, c_loc(buffer), size(buffer, kind=c_int64_t)), stat, errmsg)
  end subroutine

  !> Describe an optimizer in a few lines of "name: value".
  function describe(self, stat, errmsg) result(text)
    class(optimizer), intent(in) :: self
    integer, intent(out), optional :: stat
    character(*), intent(inout), optional :: errmsg
    character(:), allocatable :: text
    type(c_ptr) :: lines

    lines = c_describe(merge(self%handle, -1_c_int, self%handle /= 0))
    text = text_of(lines)
    call settle(merge(opt_ok, c_error_status(), c_associated(lines)), stat, errmsg)
  end function

  ! ---- the library itself ----

  !> Start Python and PyTorch now rather than at the first create, and set options: see opt_init in optplug.h.
  subroutine opt_init(options, stat, errmsg)
    character(*), intent(in) :: options
    integer, intent(out), optional :: stat
    character(*), intent(inout), optional :: errmsg

    call settle(c_init(trim(options) // c_null_char), stat, errmsg)
  end subroutine

  !> Set a procedure that receives the library's log, as opt_log in optplug.h does; without one, remove it.
  subroutine opt_log(procedure, stat, errmsg)
    procedure(log_procedure), optional :: procedure
    integer, intent(out), optional :: stat
    character(*), intent(inout), optional :: errmsg
    integer(c_int) :: status

    status = c_log(c_null_funptr, c_null_ptr) ! waits for running calls of the previous one
    told => null()
    if (status == opt_ok .and. present(procedure)) then
      told => procedure
      status = c_log(c_funloc(call_log), c_null_ptr)
    end if
    call settle(status, stat, errmsg)
  end subroutine

  subroutine call_log(user, level, line) bind(c, name="")
    type(c_ptr), value :: user
    integer(c_int), value :: level
    type(c_ptr), value :: line

    if (associated(told) .and. .not. c_associated(user)) call told(int(level), text_of(line))
  end subroutine

  !> List what is available, one per line: "optimizers", "schedulers", "dtypes", "devices"; or, for the name of
  !> an optimizer or scheduler, its arguments.
  function opt_list(kind, stat, errmsg) result(text)
    character(*), intent(in) :: kind
    integer, intent(out), optional :: stat
    character(*), intent(inout), optional :: errmsg
    character(:), allocatable :: text
    type(c_ptr) :: lines

    lines = c_list(trim(kind) // c_null_char)
    text = text_of(lines)
    call settle(merge(opt_ok, c_error_status(), c_associated(lines)), stat, errmsg)
  end function

  !> Describe the library: which Python, torch and devices it uses.  Starts nothing.
  function opt_describe() result(text)
    character(:), allocatable :: text

    text = text_of(c_describe(0_c_int))
  end function

  !> Return the version of the loaded library.
  function opt_version() result(text)
    character(:), allocatable :: text

    text = text_of(c_version())
  end function

  !> Return this thread's last error.
  pure function opt_error() result(text)
    character(:), allocatable :: text

    text = text_of(c_error())
  end function

  !> Return the Python traceback of that error; "" if it did not come from Python.
  function opt_traceback() result(text)
    character(:), allocatable :: text

    text = text_of(c_traceback())
  end function

  !> Return PyTorch's warnings from this thread's calls since the last opt_warning, one per line.
  function opt_warning() result(text)
    character(:), allocatable :: text

    text = text_of(c_warning())
  end function

  ! ---- what they have in common ----

  !> Report a call's status as ALLOCATE does; message is for errors found here.
  pure subroutine settle(status, stat, errmsg, message)
    integer(c_int), intent(in) :: status
    integer, intent(out), optional :: stat
    character(*), intent(inout), optional :: errmsg
    character(*), intent(in), optional :: message
    character(:), allocatable :: text

    if (present(stat)) stat = min(int(status), 0)
    if (status >= 0) return
    if (present(message)) then
      text = message
    else
      text = opt_error()
    end if
    if (present(errmsg)) errmsg = text
    if (.not. present(stat)) error stop "optplug: " // text
  end subroutine

  pure function text_of(lines) result(text)
    type(c_ptr), intent(in) :: lines
    character(:), allocatable :: text

    text = ""
    if (.not. c_associated(lines)) return
    text = repeat(" ", c_strlen(lines))
    call c_memcpy(text, lines, len(text, c_size_t))
  end function

  pure function shown(shape) result(text)
    integer(int64), intent(in) :: shape(:)
    character(:), allocatable :: text
    character(20) :: number
    integer :: i

    text = ""
    do i = 1, size(shape)
      write (number, "(i0)") shape(i)
      text = text // ", " // trim(number)
    end do
    text = "(" // text(3:) // ")"
  end function

  pure function column_major(shape) result(strides)
    integer(int64), intent(in) :: shape(:)
    integer(int64) :: strides(size(shape))
    integer :: i

    if (size(shape) > 0) strides(1) = 1
    do i = 2, size(shape)
      strides(i) = strides(i - 1) * max(shape(i - 1), 1_int64)
    end do
  end function

  pure integer function bytes_of(dtype)
    character(*), intent(in) :: dtype

    bytes_of = 8
    if (dtype == "float32") bytes_of = 4
    if (dtype == "complex128") bytes_of = 16
  end function

  !> Return the layout of an array without gaps.
  pure function without_gaps(shape, first) result(this)
    integer(int64), intent(in) :: shape(:)
    type(c_ptr), intent(in) :: first
    type(layout) :: this

    if (size(shape) > size(this%shape)) then
      write (this%mistake, "(a, i0, a)") "has ", size(shape), " dimensions: at most 7 are possible"
      return
    end if
    this%mistake = ""
    this%ndim = size(shape, kind=c_int)
    this%shape(:this%ndim) = shape
    this%strides = column_major(this%shape)
    this%first = first
  end function

  !> Set the strides of an array that has gaps, or another order of dimensions.
  subroutine stride(this, strides)
    type(layout), intent(inout) :: this
    integer, intent(in) :: strides(:)

    if (this%mistake /= "") return
    if (size(strides) == this%ndim) then
      this%strides(:this%ndim) = strides
    else
      this%mistake = "has strides " // shown(int(strides, int64)) // " for " // &
        achar(iachar("0") + this%ndim) // " dimensions"
    end if
  end subroutine

  !> Return the layout of an array that may have gaps, from the addresses of its values.  This takes a pointer of
  !> the array's rank, and values rather than sections: otherwise gfortran 12 forgets the gaps between components
  !> of structures.
  function layout_real32(x) result(this)
    real(real32), pointer, intent(in) :: x(..)
    type(layout) :: this
    real(real32), pointer :: x1(:), x2(:, :), x3(:, :, :)
    integer :: l(3), u(3)

    if (.not. associated(x)) return
    this = without_gaps(shape(x, int64), c_null_ptr)
    if (size(x) == 0) return
    select rank (x)
    rank (1)
      x1 => x
      l(:1) = lbound(x1)
      u(:1) = min(l(:1) + 1, ubound(x1))
      call measure(this, 4, c_loc(x1(l(1))), [c_loc(x1(u(1)))])
    rank (2)
      x2 => x
      l(:2) = lbound(x2)
      u(:2) = min(l(:2) + 1, ubound(x2))
      call measure(this, 4, c_loc(x2(l(1), l(2))), [c_loc(x2(u(1), l(2))), c_loc(x2(l(1), u(2)))])
    rank (3)
      x3 => x
      l = lbound(x3)
      u = min(l + 1, ubound(x3))
      call measure(this, 4, c_loc(x3(l(1), l(2), l(3))), &
        [c_loc(x3(u(1), l(2), l(3))), c_loc(x3(l(1), u(2), l(3))), c_loc(x3(l(1), l(2), u(3)))])
    rank default
      this%mistake = "must be of rank 1, 2 or 3"
    end select
  end function

  function layout_real64(x) result(this)
    real(real64), pointer, intent(in) :: x(..)
    type(layout) :: this
    real(real64), pointer :: x1(:), x2(:, :), x3(:, :, :)
    integer :: l(3), u(3)

    if (.not. associated(x)) return
    this = without_gaps(shape(x, int64), c_null_ptr)
    if (size(x) == 0) return
    select rank (x)
    rank (1)
      x1 => x
      l(:1) = lbound(x1)
      u(:1) = min(l(:1) + 1, ubound(x1))
      call measure(this, 8, c_loc(x1(l(1))), [c_loc(x1(u(1)))])
    rank (2)
      x2 => x
      l(:2) = lbound(x2)
      u(:2) = min(l(:2) + 1, ubound(x2))
      call measure(this, 8, c_loc(x2(l(1), l(2))), [c_loc(x2(u(1), l(2))), c_loc(x2(l(1), u(2)))])
    rank (3)
      x3 => x
      l = lbound(x3)
      u = min(l + 1, ubound(x3))
      call measure(this, 8, c_loc(x3(l(1), l(2), l(3))), &
        [c_loc(x3(u(1), l(2), l(3))), c_loc(x3(l(1), u(2), l(3))), c_loc(x3(l(1), l(2), u(3)))])
    rank default
      this%mistake = "must be of rank 1, 2 or 3"
    end select
  end function

  function layout_complex32(x) result(this)
    complex(real32), pointer, intent(in) :: x(..)
    type(layout) :: this
    complex(real32), pointer :: x1(:), x2(:, :), x3(:, :, :)
    integer :: l(3), u(3)

    if (.not. associated(x)) return
    this = without_gaps(shape(x, int64), c_null_ptr)
    if (size(x) == 0) return
    select rank (x)
    rank (1)
      x1 => x
      l(:1) = lbound(x1)
      u(:1) = min(l(:1) + 1, ubound(x1))
      call measure(this, 8, c_loc(x1(l(1))), [c_loc(x1(u(1)))])
    rank (2)
      x2 => x
      l(:2) = lbound(x2)
      u(:2) = min(l(:2) + 1, ubound(x2))
      call measure(this, 8, c_loc(x2(l(1), l(2))), [c_loc(x2(u(1), l(2))), c_loc(x2(l(1), u(2)))])
    rank (3)
      x3 => x
      l = lbound(x3)
      u = min(l + 1, ubound(x3))
      call measure(this, 8, c_loc(x3(l(1), l(2), l(3))), &
        [c_loc(x3(u(1), l(2), l(3))), c_loc(x3(l(1), u(2), l(3))), c_loc(x3(l(1), l(2), u(3)))])
    rank default
      this%mistake = "must be of rank 1, 2 or 3"
    end select
  end function

  function layout_complex64(x) result(this)
    complex(real64), pointer, intent(in) :: x(..)
    type(layout) :: this
    complex(real64), pointer :: x1(:), x2(:, :), x3(:, :, :)
    integer :: l(3), u(3)

    if (.not. associated(x)) return
    this = without_gaps(shape(x, int64), c_null_ptr)
    if (size(x) == 0) return
    select rank (x)
    rank (1)
      x1 => x
      l(:1) = lbound(x1)
      u(:1) = min(l(:1) + 1, ubound(x1))
      call measure(this, 16, c_loc(x1(l(1))), [c_loc(x1(u(1)))])
    rank (2)
      x2 => x
      l(:2) = lbound(x2)
      u(:2) = min(l(:2) + 1, ubound(x2))
      call measure(this, 16, c_loc(x2(l(1), l(2))), [c_loc(x2(u(1), l(2))), c_loc(x2(l(1), u(2)))])
    rank (3)
      x3 => x
      l = lbound(x3)
      u = min(l + 1, ubound(x3))
      call measure(this, 16, c_loc(x3(l(1), l(2), l(3))), &
        [c_loc(x3(u(1), l(2), l(3))), c_loc(x3(l(1), u(2), l(3))), c_loc(x3(l(1), l(2), u(3)))])
    rank default
      this%mistake = "must be of rank 1, 2 or 3"
    end select
  end function

  !> Work out strides from where an array begins and where the second value of each dimension is.
  subroutine measure(this, bytes, first, second)
    type(layout), intent(inout) :: this
    integer, intent(in) :: bytes
    type(c_ptr), intent(in) :: first, second(:)
    integer(c_intptr_t) :: distance
    integer :: i

    this%first = first
    do i = 1, size(second)
      if (this%shape(i) < 2) cycle
      distance = transfer(second(i), distance) - transfer(first, distance)
      this%strides(i) = distance / bytes
      if (mod(distance, int(bytes, c_intptr_t)) /= 0) this%mistake = "has gaps that its kind does not divide"
    end do
  end subroutine

  !> The number of a parameter in the list of them, 0 if it is not there.
  pure integer function found(self, name)
    class(optimizer), intent(in) :: self
    character(*), intent(in) :: name

    found = 0
    if (.not. associated(self%parameters)) return
    do found = size(self%parameters), 1, -1
      if (self%parameters(found)%name == name) return
    end do
  end function

  pure subroutine note(self, new)
    class(optimizer), intent(inout) :: self
    type(parameter), intent(in) :: new
    type(parameter), pointer :: longer(:)
    integer :: i, n

    i = found(self, new%name)
    if (i > 0) then
      self%parameters(i) = new
    else
      n = size(self%parameters)
      allocate (longer(n + 1))
      longer(:n) = self%parameters
      longer(n + 1) = new
      deallocate (self%parameters)
      self%parameters => longer
    end if
  end subroutine

  !> What is wrong with the size of an array that is to hold all parameters bound by their shape; "" for nothing.
  pure function wrong_size(self, name, n) result(mistake)
    class(optimizer), intent(in) :: self
    character(*), intent(in) :: name
    integer(int64), intent(in) :: n
    character(:), allocatable :: mistake
    integer(int64) :: wanted
    integer :: i

    mistake = ""
    wanted = 0
    if (.not. associated(self%parameters)) return
    do i = 1, size(self%parameters)
      if (self%parameters(i)%comes_later) wanted = wanted + product(self%parameters(i)%shape)
    end do
    if (n /= wanted .and. wanted > 0) mistake = name // " is of shape " // shown([n]) // &
      ", and the parameters that were bound by their shape have values for " // shown([wanted])
  end function

  subroutine forget(self)
    type(optimizer), intent(inout) :: self

    self%handle = 0
    call forget_schedules(self)
    if (associated(self%parameters)) deallocate (self%parameters)
  end subroutine

  subroutine forget_schedules(self)
    class(optimizer), intent(inout) :: self
    type(callback), pointer :: next

    do while (associated(self%schedules))
      next => self%schedules%next
      deallocate (self%schedules)
      self%schedules => next
    end do
  end subroutine

  impure elemental subroutine finish(self)
    type(optimizer), intent(inout) :: self
    integer(c_int) :: ignored

    if (self%mark /= made) return
    if (self%handle /= 0) ignored = c_free(self%handle)
    call forget(self)
    self%mark = 0
  end subroutine

  subroutine refuse_copy(left, right)
    class(optimizer), intent(inout) :: left
    class(optimizer), intent(in) :: right

    if (.not. created(right) .and. .not. created(left)) then
      left%handle = 0
      nullify (left%schedules, left%parameters)
      left%mark = made
      return
    end if
    error stop "optplug: optimizer " // shown([int(right%handle, int64)]) // " cannot be copied to " // &
      shown([int(left%handle, int64)]) // ": it owns its state; pass it on, or point to it"
  end subroutine
end module

! What a compiler may not see is behind the pure procedures of optimizer%bind and %step: they change what lies
! in C.
subroutine optplug_fortran_bind_nd(opt, name, dtype, device, ndim, shape, data, strides, grad, grad_strides, &
  status) bind(c, name="optplug_fortran_bind_nd")
  use, intrinsic :: iso_c_binding, only: c_char, c_int, c_int64_t, c_ptr
  implicit none
  integer(c_int), value :: opt, ndim
  character(kind=c_char), intent(in) :: name(*), dtype(*), device(*)
  integer(c_int64_t), intent(in) :: shape(*), strides(*), grad_strides(*)
  type(c_ptr), value :: data, grad
  integer(c_int), intent(out) :: status
  interface
    integer(c_int) function c_bind_nd(opt, name, dtype, device, ndim, shape, data, strides, grad, &
      grad_strides) bind(c, name="optplug_bind_nd")
      import :: c_char, c_int, c_int64_t, c_ptr
      integer(c_int), value :: opt, ndim
      character(kind=c_char), intent(in) :: name(*), dtype(*), device(*)
      integer(c_int64_t), intent(in) :: shape(*), strides(*), grad_strides(*)
      type(c_ptr), value :: data, grad
    end function
  end interface

  status = c_bind_nd(opt, name, dtype, device, ndim, shape, data, strides, grad, grad_strides)
end subroutine

subroutine optplug_fortran_step_f32(opt, data, grad, status) bind(c, name="optplug_fortran_step_f32")
  use, intrinsic :: iso_c_binding, only: c_double, c_float, c_int
  implicit none
  integer(c_int), value :: opt
  real(c_float), intent(inout) :: data(*)
  real(c_float), intent(in) :: grad(*)
  integer(c_int), intent(out) :: status
  interface
    integer(c_int) function c_step(opt, data, grad) bind(c, name="optplug_step_f32")
      import :: c_double, c_float, c_int
      integer(c_int), value :: opt
      real(c_float), intent(inout) :: data(*)
      real(c_float), intent(in) :: grad(*)
    end function
  end interface

  status = c_step(opt, data, grad)
end subroutine
subroutine optplug_fortran_step_f64(opt, data, grad, status) bind(c, name="optplug_fortran_step_f64")
  use, intrinsic :: iso_c_binding, only: c_double, c_float, c_int
  implicit none
  integer(c_int), value :: opt
  real(c_double), intent(inout) :: data(*)
  real(c_double), intent(in) :: grad(*)
  integer(c_int), intent(out) :: status
  interface
    integer(c_int) function c_step(opt, data, grad) bind(c, name="optplug_step_f64")
      import :: c_double, c_float, c_int
      integer(c_int), value :: opt
      real(c_double), intent(inout) :: data(*)
      real(c_double), intent(in) :: grad(*)
    end function
  end interface

  status = c_step(opt, data, grad)
end subroutine
