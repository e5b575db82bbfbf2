!> What is around the steps: options, schedules, averages, checkpoints, errors.
module states
  use, intrinsic :: iso_c_binding, only: c_loc, c_null_ptr
  use, intrinsic :: iso_fortran_env, only: int8, real32, real64
  use checks, only: check, counter
  use optplug
  implicit none
  private

  public :: test_states, copy_one, fail_without_stat

  character(:), allocatable :: told

contains

  subroutine test_states()
    call groups_and_hyperparameters()
    call schedules_step_and_take_functions()
    call gradients_are_clipped_and_zeroed()
    call gradients_are_divided_by_the_scale()
    call streams_are_for_gpus()
    call averages_come_in_fortrans_order()
    call checkpoints_in_files_and_memory()
    call an_optimizer_ends_with_its_variable()
    call mistakes_are_told_as_allocate_tells_them()
    call the_library_tells_of_itself()
  end subroutine

  subroutine groups_and_hyperparameters()
    real(real64), target :: a(1) = 0, b(1) = 0, d(1) = 1, e(1) = 1
    real(real64) :: value
    type(optimizer) :: opt
    character(200) :: message
    integer :: stat

    call opt%create("SGD(lr=0.5)")
    call opt%bind("a", a, d)
    call opt%group("lr=0.25")
    call opt%bind("b", b, e)
    call opt%step()
    call check(a(1) == -0.5_real64 .and. b(1) == -0.25_real64, "groups")
    call opt%set(-1, "lr=2")
    call opt%get(1, "lr", value)
    call opt%step()
    call check(value == 2 .and. a(1) == -2.5_real64 .and. b(1) == -2.25_real64, "set and get")
    call opt%get(2, "lr", value, stat, message)
    call check(stat == opt_einval .and. value == 2 .and. index(message, "group") > 0, message)
    call opt%set_value(1, "lr", 0.5_real64)
    call opt%get(1, "lr", value)
    call opt%step()
    call check(value == 0.5_real64 .and. a(1) == -4.5_real64 .and. b(1) == -2.75_real64, "set_value")
    call opt%set_value(-1, "lr", -1.0_real64, stat, message)
    call check(stat == opt_einval .and. index(message, "lr=-1.0") > 0, message)
  end subroutine

  subroutine schedules_step_and_take_functions()
    real(real64), target :: a(1) = 0, d(1) = 1
    real(real64) :: rate
    type(optimizer) :: opt
    type(counter), target :: count

    call opt%create("SGD(lr=1)")
    call opt%bind("a", a, d)
    call opt%schedule("StepLR(step_size=2, gamma=0.5)")
    call opt%schedule("LambdaLR()", halve_each_epoch, count)
    call opt%step()
    call opt%schedule_step()
    call opt%get(0, "lr", rate)
    call check(rate == 0.5_real64 .and. count%calls == 2, "a function with a context")
    call opt%schedule()
    call opt%schedule("StepLR(step_size=1, gamma=0.5)")
    call opt%step()
    call opt%schedule_step()
    call opt%get(0, "lr", rate)
    call check(rate == 0.25_real64 .and. count%calls == 2, "another schedule in the place of both")
    call opt%free()

    call opt%create("SGD(lr=1)")
    call opt%bind("a", a, d)
    call opt%schedule("ReduceLROnPlateau(factor=0.5, patience=0)")
    call opt%schedule_step(1.0_real64)
    call opt%schedule_step(1.0_real64)
    call opt%get(0, "lr", rate)
    call check(rate == 0.5_real64, "a metric")
  end subroutine

  subroutine halve_each_epoch(value, group, stat, context)
    real(real64), intent(inout) :: value
    integer, intent(in) :: group
    integer, intent(inout) :: stat
    class(*), intent(inout), optional :: context

    value = 0.5_real64**value
    if (group /= 0) stat = 1
    select type (context)
    type is (counter)
      context%calls = context%calls + 1
    end select
  end subroutine

  subroutine gradients_are_clipped_and_zeroed()
    real(real64), target :: x(2) = 0, dx(2) = [3, 4]
    real(real64) :: norm
    type(optimizer) :: opt
    character(200) :: message
    integer :: stat

    call opt%create("SGD(lr=1)")
    call opt%bind("x", x, dx)
    call opt%clip_grad_norm(10.0_real64, total_norm=norm)
    call check(norm == 5 .and. all(dx == [3, 4]), "the norm")
    call opt%clip_grad_norm(10.0_real64, norm_type=1.0_real64, total_norm=norm)
    call check(norm == 7, "the 1-norm")
    call opt%clip_grad_value(3.5_real64)
    call check(all(dx == [3.0_real64, 3.5_real64]), "the values")
    call opt%clip_grad_norm(-1.0_real64, stat=stat, errmsg=message)
    call check(stat == opt_einval, message)
    dx = huge(dx)
    dx = dx * 2
    call opt%clip_grad_norm(1.0_real64, error_if_nonfinite=.true., stat=stat, errmsg=message)
    call check(stat == opt_enonfinite, message)
    call opt%zero_grad()
    call check(all(dx == 0), "zeroed")
  end subroutine

  subroutine gradients_are_divided_by_the_scale()
    real(real64), target :: x(2) = 1, dx(2) = 2
    real(real32), target :: scale = 2, found_inf = 0
    type(optimizer) :: opt
    character(200) :: message
    integer :: stat

    call opt%create("SGD(lr=0.5)")
    call opt%grad_scale(c_loc(scale), c_null_ptr, stat, message)
    call check(stat == opt_estate .and. index(message, "nothing is bound") > 0, message)
    call opt%bind("x", x, dx)
    call opt%grad_scale(c_loc(scale), c_loc(found_inf))
    call opt%step()
    call check(all(x == 0.5_real64), "half the gradient")
    found_inf = 1
    dx = huge(dx)
    call opt%step()
    call check(all(x == 0.5_real64), "left out")
    call opt%grad_scale(c_null_ptr, c_null_ptr)
    dx = 1
    call opt%step()
    call check(all(x == 0), "the whole gradient")
  end subroutine

  subroutine streams_are_for_gpus()
    real(real64), target :: x(1) = 1, dx(1) = 2
    type(optimizer) :: opt
    character(200) :: message
    integer :: stat

    call opt%create("SGD(lr=0.5)")
    call opt%bind("x", x, dx)
    call opt%stream(c_loc(x), stat, message)
    call check(stat == opt_estate .and. index(message, "no parameter is on a GPU") > 0, message)
    call opt%stream(c_null_ptr)
    call opt%step()
    call check(x(1) == 0, "PyTorch's stream")
  end subroutine

  subroutine averages_come_in_fortrans_order()
    real(real64), target :: m(2, 3, 2), dm(2, 3, 2) = 0, before(2, 3, 2)
    complex(real32), target :: z(2, 2), dz(2, 2) = 0
    real(real64) :: average(2, 3, 2), wide(4, 3, 2)
    complex(real32) :: z_average(2, 2)
    real(real32) :: single(2, 3, 2)
    type(optimizer) :: opt
    character(200) :: message
    integer :: i, stat

    m = reshape([(i, i=1, 12)], shape(m))
    z = reshape([(cmplx(i, -i), i=1, 4)], shape(z))
    call opt%create("SGD(lr=1)")
    call opt%bind("m", m, dm)
    call opt%bind("z", z, dz)
    call opt%average("AveragedModel()")
    call opt%step()
    before = m
    m = 3 * m
    call opt%step()
    call opt%average_get("m", average)
    call opt%average_get("z", z_average)
    call check(all(average == 2 * before) .and. all(z_average == z), "averages")
    wide = 0
    call opt%average_get("m", wide(::2, :, :), stat, message)
    call check(stat == opt_einval .and. all(wide == 0), message)
    call opt%average_swap()
    call check(all(m == average), "in place")
    call opt%average_swap()
    call check(all(m == 3 * before), "and back")
    call opt%call("eval", stat, message)
    call check(stat == opt_einval .and. index(message, "method 'eval': SGD has no train()") == 1, message)
    call opt%average_get("m", single, stat, message)
    call check(stat == opt_einval .and. message == &
      "data is float32 of shape (2, 3, 2), and parameter 'm' is float64 of (2, 3, 2)", message)
    call opt%average_get("m", average(:, :, 1), stat, message)
    call check(stat == opt_einval .and. index(message, "of shape (2, 3)") > 0, message)
    call opt%average_get("n", average, stat, message)
    call check(stat == opt_einval, message)
  end subroutine

  subroutine checkpoints_in_files_and_memory()
    real(real64), target :: x(1) = 0, dx(1) = 1
    integer(int8), allocatable :: buffer(:)
    type(optimizer) :: opt
    character(200) :: message
    integer :: stat

    call opt%create("SGD(lr=1, momentum=0.5)")
    call opt%bind("x", x, dx)
    call opt%step()
    call opt%save("fortran checkpoint.pt")
    call opt%save_memory(buffer)
    call opt%step()
    call check(x(1) == -2.5_real64, "two steps")
    call opt%load("fortran checkpoint.pt")
    x = -1
    call opt%step()
    call check(x(1) == -2.5_real64, "and again the second")
    call opt%load_memory(buffer)
    x = -1
    call opt%step()
    call check(x(1) == -2.5_real64, "and again")
    call opt%checkpoint("parameters=True")
    call opt%save_memory(buffer)
    x = 0
    call opt%load_memory(buffer)
    call check(x(1) == -2.5_real64, "values out of a checkpoint")
    call opt%attribute("time", "12.5 h ")
    call opt%attribute("gone", "x")
    call opt%attribute("gone")
    call check(opt%attribute_get("time") == "12.5 h " .and. len(opt%attribute_get("time")) == 7, "an attribute")
    call check(opt%attribute_get("gone", stat, message) == "" .and. stat == opt_einval, "no attribute")
    call check(index(message, "no attribute 'gone'") > 0, message)
    call opt%load_memory(buffer(:100), stat, message)
    call check(stat == opt_einval, message)
    call opt%save("/nowhere/at/all", stat, message)
    call check(stat == opt_eio .and. index(message, "/nowhere/at/all") > 0, message)
    open (10, file="fortran checkpoint.pt")
    close (10, status="delete")
  end subroutine

  subroutine an_optimizer_ends_with_its_variable()
    integer :: i

    do i = 1, 3
      call lives_here()
    end do

  contains

    subroutine lives_here()
      type(optimizer) :: opt, several(2)
      type(optimizer), allocatable :: one

      allocate (one)
      call one%create("SGD()")
      call opt%create("SGD()")
      call several(2)%create("SGD()")
    end subroutine
  end subroutine

  subroutine mistakes_are_told_as_allocate_tells_them()
    type(optimizer) :: opt
    character(200) :: message
    character(10) :: short
    integer :: stat

    message = "untouched"
    call opt%create("SGD(lr=0.5)", stat, message)
    call check(stat == 0 .and. message == "untouched", message)
    call opt%create("SGD(lr=0.5)", stat, message)
    call check(stat == opt_estate .and. index(message, "call free first") > 0, message)
    call opt%free()
    call opt%free(stat, message)
    call check(stat == opt_ehandle .and. index(message, "is not an optimizer") > 0, message)
    call opt%step(stat)
    call check(stat == opt_ehandle, "a step after free")
    call opt%create("Adm()", stat, short)
    call check(stat == opt_einval .and. short == "spec 'Adm(", short)
    call opt%create("Adam()")
    call opt%step(stat, message)
    call check(stat == opt_estate, message)
  end subroutine

  subroutine take_line(level, line)
    integer, intent(in) :: level
    character(*), intent(in) :: line

    if (level == 1) told = told // line // new_line(line)
  end subroutine

  subroutine the_library_tells_of_itself()
    type(optimizer) :: opt
    character(:), allocatable :: text
    character(200) :: message
    integer :: stat

    call opt_init("num_threads=1")
    call opt_init("num_threads=0", stat, message)
    call check(stat == opt_einval .and. message == opt_error() .and. index(opt_traceback(), "Error") > 0, message)
    call check(len(opt_version()) >= 5 .and. index(opt_describe(), opt_version()) > 0, opt_describe())
    told = ""
    call opt_log(take_line)
    call opt%create("SGD(lr=0.125)")
    call opt%free()
    call opt_log()
    call opt%create("SGD(lr=0.5)")
    call opt%free()
    call check(index(told, "SGD(lr=0.125)") > 0 .and. index(told, "SGD(lr=0.5)") == 0, told)
    call check(index(opt_list("optimizers"), "Adam") > 0, opt_list("optimizers"))
    text = opt_list("optimisers", stat, message)
    call check(stat == opt_einval .and. text == "", message)
    text = opt%describe(stat, message)
    call check(stat == opt_ehandle .and. text == "", message)
    call opt%create("Adam(lr=0.25)")
    call check(index(opt%describe(), "0.25") > 0, opt%describe())
    text = opt_warning()
    call check(text == "", text)
  end subroutine

  !> For test_bindings.py: it is an error, with a line that says why.
  subroutine copy_one()
    type(optimizer) :: a, b

    call a%create("SGD()")
    b = a
    call b%step()
  end subroutine

  !> Likewise.
  subroutine fail_without_stat()
    type(optimizer) :: opt

    call opt%create("Adm()")
  end subroutine
end module
