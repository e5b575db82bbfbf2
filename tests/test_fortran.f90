!> The Fortran module, with numbers worked out by hand: all of them are exact in binary.
module cases
  use, intrinsic :: iso_c_binding, only: c_loc, c_null_ptr
  use, intrinsic :: iso_fortran_env, only: error_unit, int64, int8, real32, real64
  use optplug
  implicit none
  private

  public :: run_all, copy_one, fail_without_stat

  type, public :: counter
    integer :: calls = 0
  end type

  character(:), allocatable :: told

contains

  subroutine run_all()
    call arrays_of_each_kind_are_stepped()
    call ranks_0_to_7_are_stepped()
    call lbfgs_steps_a_matrix_that_is_bound_flat()
    call pytorch_sees_the_true_shape()
    call sections_are_wrapped_by_their_strides()
    call what_cannot_be_wrapped_is_refused()
    call arrays_may_come_with_each_step()
    call groups_and_hyperparameters()
    call schedules_step_and_take_functions()
    call closures_see_their_host_and_a_context()
    call reverse_communication_makes_the_same_step()
    call gradients_are_clipped_and_zeroed()
    call sparse_rows_are_columns()
    call memory_of_a_device_is_bound_by_its_address()
    call gradients_are_divided_by_the_scale()
    call streams_are_for_gpus()
    call averages_come_in_fortrans_order()
    call checkpoints_in_files_and_memory()
    call an_optimizer_ends_with_its_variable()
    call mistakes_are_told_as_allocate_tells_them()
    call the_library_tells_of_itself()
  end subroutine

  subroutine arrays_of_each_kind_are_stepped()
    real(real32), target :: a(2) = [1, 2], da(2) = [2, 4]
    real(real64), target :: b(2) = [1, 2], db(2) = [2, 4]
    complex(real32), target :: c(1) = [(1, 2)], dc(1) = [(2, 4)]
    complex(real64), target :: d(1) = [(1, 2)], dd(1) = [(2, 4)]
    real(real64), allocatable, target :: e(:), de(:)
    real(real64), pointer, contiguous :: f(:), df(:)
    type(optimizer) :: opt

    allocate (e(2), de(2), f(2), df(2))
    e = b
    de = db
    f = b
    df = db
    call opt%create("SGD(lr=0.5)   ")
    call opt%bind("a", a, da)
    call opt%bind("b  ", b, db)
    call opt%bind("c", c, dc)
    call opt%bind("d", d, dd)
    call opt%bind("e", e, de)
    call opt%bind("f", f, df)
    call opt%step()
    call check(all(a == 0) .and. all(b == 0) .and. all(c == 0) .and. all(d == 0), "each kind")
    call check(all(e == 0) .and. all(f == 0), "allocatable and pointer")
    call opt%free()
    deallocate (f, df)
  end subroutine

  subroutine ranks_0_to_7_are_stepped()
    real(real64), target :: r0 = 2, r1(2) = 2, r2(2, 3) = 2, r3(2, 3, 2) = 2, r4(2, 1, 2, 2) = 2
    real(real64), target :: r5(2, 1, 2, 2, 3) = 2, r6(1, 2, 1, 2, 2, 2) = 2, r7(2, 1, 2, 1, 2, 2, 2) = 2
    real(real64), target :: d0, d1(2), d2(2, 3), d3(2, 3, 2), d4(2, 1, 2, 2)
    real(real64), target :: d5(2, 1, 2, 2, 3), d6(1, 2, 1, 2, 2, 2), d7(2, 1, 2, 1, 2, 2, 2)
    type(optimizer) :: opt

    d0 = 4
    d1 = 4
    d2 = 4
    d3 = 4
    d4 = 4
    d5 = 4
    d6 = 4
    d7 = 4
    call opt%create("SGD(lr=0.5)")
    call opt%bind_scalar("0", r0, d0)
    call opt%bind("1", r1, d1)
    call opt%bind("2", r2, d2)
    call opt%bind("3", r3, d3)
    call opt%bind("4", r4, d4)
    call opt%bind("5", r5, d5)
    call opt%bind("6", r6, d6)
    call opt%bind("7", r7, d7)
    call opt%step()
    call check(r0 == 0 .and. all(r1 == 0) .and. all(r2 == 0) .and. all(r3 == 0), "ranks 0 to 3")
    call check(all(r4 == 0) .and. all(r5 == 0) .and. all(r6 == 0) .and. all(r7 == 0), "ranks 4 to 7")
  end subroutine

  !> Muon takes matrices alone and refuses others, with the shape that PyTorch sees.
  subroutine pytorch_sees_the_true_shape()
    real(real64), target :: a(2, 3, 4) = 0, da(2, 3, 4) = 1
    type(optimizer) :: opt
    character(200) :: message
    integer :: stat

    call opt%create("Muon(lr=0.5)")
    call opt%bind("a", a, da, stat, message)
    call check(stat == opt_einval .and. index(message, "torch.Size([2, 3, 4])") > 0, message)
    call opt%bind("m", a(:, :, 2), da(:, :, 2))
    call opt%step()
    call check(all(a(:, :, [1, 3, 4]) == 0) .and. all(a(:, :, 2) /= 0), "only the matrix moves")
  end subroutine

  subroutine sections_are_wrapped_by_their_strides()
    type :: particle
      real(real64) :: x = 1, dx = 2
      real(real32) :: mass = 3
    end type
    real(real64), target :: u(0:5, -1:4), du(0:3, 6)
    real(real64), allocatable, target :: v(:)
    real(real64), pointer :: inside(:, :), its_grad(:, :), third(:), third_grad(:), x(:), dx(:)
    complex(real32), target :: z(-2:2, 3) = 1, dz(5, 3) = 2
    complex(real32), pointer :: rows(:, :), rows_grad(:, :)
    real(real32), target :: block(3, 3, 3) = 1, of_block(3, 3, 3) = 1
    real(real32), pointer :: corner(:, :, :), of_corner(:, :, :)
    type(particle), target :: particles(3)
    type(optimizer) :: opt
    integer :: i, j

    u = 1
    do j = 1, 6
      do i = 0, 3
        du(i, j) = i + 10 * j
      end do
    end do
    allocate (v(-3:8))
    v = 1
    inside(-7:, 3:) => u(1:4, 0:3)
    its_grad => du(:, 2:5)
    rows => z(::2, :)
    rows_grad => dz(1:3, :)
    third => v(::3)
    third_grad => v(-2::3)
    x => particles%x
    dx => particles%dx
    corner => block(2:, ::2, 1:3:2)
    of_corner => of_block(2:, ::2, 1:3:2)
    call opt%create("SGD(lr=0.5)")
    call opt%bind_section("inside", inside, its_grad)
    call opt%bind_section("rows", rows, rows_grad)
    call opt%bind_section("every third", third, third_grad)
    call opt%bind_section("component", x, dx)
    call opt%bind_section("corner", corner, of_corner)
    call opt%step()
    do j = 0, 3
      do i = 1, 4
        call check(u(i, j) == 1 - 0.5_real64 * du(i - 1, j + 2), "inside of a field with halos")
      end do
    end do
    call check(all(u(0, :) == 1) .and. all(u(5, :) == 1) .and. all(u(:, -1) == 1) .and. all(u(:, 4) == 1), "halos")
    call check(all(z(::2, :) == 0) .and. all(z(-1::2, :) == 1), "every second row")
    call check(all(v(-3::3) == 0.5_real64) .and. all(v(-2::3) == 1) .and. all(v(-1::3) == 1), "every third value")
    call check(all(particles%x == 0) .and. all(particles%dx == 2) .and. all(particles%mass == 3), "components")
    call check(all(block(2:, ::2, ::2) == 0.5_real32) .and. count(block == 1) == 27 - 8, "the corners of a block")
  end subroutine

  subroutine what_cannot_be_wrapped_is_refused()
    real(real64), target :: a(6) = 1, b(2, 3) = 1, rank_8(1, 1, 1, 1, 1, 1, 1, 1) = 1
    real(real64), allocatable, target :: nothing(:)
    real(real64), pointer, contiguous :: nowhere(:)
    real(real64), pointer :: section(:), plane(:, :, :, :)
    real(real64), target :: hypercube(2, 2, 2, 2)
    type :: odd
      complex(real64) :: z = 1
      real(real64) :: x = 2
    end type
    type(odd), target :: odds(3)
    complex(real64), pointer :: component(:)
    type(optimizer) :: opt
    character(200) :: message
    integer :: stat

    nullify (nowhere)
    call opt%create("SGD(lr=0.5)")
    call opt%bind("a", nowhere, a, stat, message)
    call check(stat == opt_einval .and. message == "parameter 'a': data is not associated or allocated", message)
    call opt%bind("a", a, nowhere, stat, message)
    call check(stat == opt_einval .and. message == "parameter 'a': grad is not associated or allocated", message)
    call opt%bind("a", a, nothing, stat, message)
    call check(stat == opt_einval .and. message == "parameter 'a': grad is not associated or allocated", message)
    call opt%bind("a", rank_8, rank_8, stat, message)
    call check(stat == opt_einval .and. message == "parameter 'a': data has (8) dimensions, 7 is the most", message)
    call opt%bind("a", a, b, stat, message)
    call check(stat == opt_einval .and. index(message, "data is of shape (6) and grad of (2, 3)") > 0, message)
    section => a(6:1:-1)
    call opt%bind_section("a", section, section, stat, message)
    call check(stat == opt_einval .and. index(message, "strides[0] must not be negative, got -1") > 0, message)
    nullify (section)
    call opt%bind_section("a", section, section, stat, message)
    call check(stat == opt_einval .and. message == "parameter 'a': data is not associated or allocated", message)
    plane => hypercube
    call opt%bind_section("a", plane, plane, stat, message)
    call check(stat == opt_einval .and. message == "parameter 'a': data must be of rank 1, 2 or 3", message)
    component => odds%z
    call opt%bind_section("a", component, component, stat, message)
    call check(stat == opt_einval .and. index(message, "gaps that its kind does not divide") > 0, message)
    call opt%step(stat, message)
    call check(stat == opt_estate, message)
  end subroutine

  subroutine arrays_may_come_with_each_step()
    real(real64) :: w(8) = 1
    real(real32) :: v(2) = 1
    type(optimizer) :: opt
    character(200) :: message
    integer :: stat

    call opt%create("SGD(lr=0.5)")
    call opt%bind("a", "float64", [2, 1])
    call opt%bind("b", "float64", [2])
    call opt%step(w(::2), [2d0, 4d0, 6d0, 8d0])
    call check(all(w(::2) == [0, -1, -2, -3]) .and. all(w(2::2) == 1), "copies of a section")
    call opt%step(w(:3), w(:3), stat, message)
    call check(stat == opt_einval .and. index(message, "data is of shape (3), and") == 1 .and. &
      index(message, "(4)") > 0, message)
    call opt%step(v, v, stat, message)
    call check(stat == opt_einval, message)
    call opt%step(stat, message)
    call check(stat == opt_estate .and. index(message, "opt_step_f64") > 0, message)
    call opt%bind("c", "float64", [1, 1, 1, 1, 1, 1, 1, 1], stat, message)
    call check(stat == opt_einval .and. index(message, "7 is the most") > 0, message)
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

  subroutine lbfgs_steps_a_matrix_that_is_bound_flat()
    real(real64), target :: u(2, 3) = 3, du(2, 3), mean(2, 3)
    real(real64) :: loss
    type(optimizer) :: opt
    logical :: more

    call opt%create("LBFGS(max_iter=100, line_search_fn='strong_wolfe')")
    call opt%bind("u", u, du, flat=.true.)
    call opt%average("AveragedModel()")
    loss = 0
    do
      call opt%iterate(loss, more)
      if (.not. more) exit
      du = reshape(real([1, 2, 3, 4, 5, 6], real64), [2, 3]) * u
      loss = sum(du * u) / 2
    end do
    call check(all(abs(u) < 1e-3_real64), "LBFGS on a matrix")
    call opt%average_get("u", mean)
    call check(all(mean == u), "the average of what is bound flat, in its shape")
  end subroutine

  subroutine closures_see_their_host_and_a_context()
    real(real64), target :: x(2, 2), dx(2, 2)
    real(real64) :: loss
    type(optimizer) :: opt
    type(counter) :: count
    character(200) :: message
    integer :: stat, calls

    calls = 0
    x = 3
    call opt%create("LBFGS(lr=0.5, max_iter=20)")
    call opt%bind("x", x(:, 2), dx(:, 2))
    call opt%step_closure(quadratic, loss, count)
    call check(loss == 18 .and. all(abs(x(:, 2)) < 1e-2_real64) .and. all(x(:, 1) == 3), "LBFGS")
    call check(calls > 1 .and. count%calls == calls, "the host's variables, and the context")
    x(:, 2) = 3
    call opt%step_closure(give_up, loss, stat=stat, errmsg=message)
    call check(stat == -3 .and. all(x(:, 2) == 3), message)

  contains

    subroutine quadratic(loss, stat, context)
      real(real64), intent(out) :: loss
      integer, intent(inout) :: stat
      class(*), intent(inout), optional :: context

      if (stat /= 0) error stop 9
      calls = calls + 1
      loss = sum(x(:, 2)**2)
      dx(:, 2) = 2 * x(:, 2)
      select type (context)
      type is (counter)
        context%calls = context%calls + 1
      end select
    end subroutine

    subroutine give_up(loss, stat, context)
      real(real64), intent(out) :: loss
      integer, intent(inout) :: stat
      class(*), intent(inout), optional :: context

      if (present(context)) error stop 9
      loss = 0
      stat = 3
    end subroutine
  end subroutine

  subroutine reverse_communication_makes_the_same_step()
    real(real64), target :: x(2) = 3, dx(2)
    real(real64) :: loss
    type(optimizer) :: opt
    logical :: more

    loss = 0
    call opt%create("LBFGS(lr=0.5, max_iter=20)")
    call opt%bind("x", x, dx)
    do
      call opt%iterate(loss, more)
      if (.not. more) exit
      loss = sum(x**2)
      dx = 2 * x
    end do
    call check(all(abs(x) < 1e-2_real64), "LBFGS by iterate")
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

  subroutine sparse_rows_are_columns()
    real(real64), target :: table(2, 4) = 0, rows(2, 3) = 1
    real(real32), target :: single(2, 4) = 0, single_rows(2, 3) = 1
    integer(int64), target :: count = 2, indices(3) = [3, 0, 7]
    type(optimizer) :: opt
    character(200) :: message
    integer :: stat

    call opt%create("SGD(lr=0.5)")
    call opt%bind_sparse("table", table, count, indices, rows)
    call opt%bind_sparse("single", single, count, indices, single_rows)
    call opt%step()
    call check(all(table(:, [1, 4]) == -0.5_real64) .and. all(table(:, 2:3) == 0), "rows 0 and 3")
    call check(all(single(:, [1, 4]) == -0.5_real32) .and. all(single(:, 2:3) == 0), "rows 0 and 3")
    call opt%bind_sparse("table", table, count, indices, rows(:, :2), stat, message)
    call check(stat == opt_einval .and. index(message, "grad_rows is of shape (2, 2), and must be of (2, 3)") > 0, message)
    call opt%bind_sparse("table", table(:, ::2), count, indices, rows, stat, message)
    call check(stat == opt_einval .and. index(message, "contiguous") > 0, message)
  end subroutine

  !> The CPU is a device, too.
  subroutine memory_of_a_device_is_bound_by_its_address()
    real(real64), target :: m(2, 3) = 1, dm(3, 3), average(2, 3)
    real(real32), target :: v(2) = 1, dv(2) = 2
    type(optimizer) :: opt
    character(200) :: message
    integer :: i, stat

    dm = reshape([(i, i=1, 9)], shape(dm))
    call opt%create("SGD(lr=0.5)")
    call opt%bind_device("m", "float64", "cpu", [2, 3], c_loc(m), c_loc(dm), grad_strides=[1, 3])
    call opt%bind_device("v  ", "float32  ", "cpu  ", [2], c_loc(v), c_loc(dv), [1], [1])
    call opt%average("AveragedModel()")
    call opt%step()
    call check(all(m == 1 - dm(:2, :) / 2) .and. all(v == 0), "in Fortran's order, and by strides")
    call opt%average_get("m", average)
    call check(all(average == m), "the average")
    call opt%bind_device("m", "float64", "cuda:99", [2, 3], c_loc(m), c_loc(dm), stat=stat, errmsg=message)
    call check(stat == opt_einval .and. index(message, "no device 'cuda:99'") > 0, message)
    call opt%bind_device("m", "float64", "cpu", [2, 3], c_loc(m), c_loc(dm), [1], stat=stat, errmsg=message)
    call check(stat == opt_einval .and. message == "parameter 'm': data has strides (1) for (2) dimensions", message)
    call opt%bind_device("m", "float64", "cpu", [2, 3], c_loc(m), c_loc(dm), [1, 2], [1, 1], stat, message)
    call check(stat == opt_einval .and. index(message, "grad_strides") > 0, message)
    call opt%bind_device("m", "float64", "cpu", [2, 3], c_loc(m), c_null_ptr, stat=stat, errmsg=message)
    call check(stat == opt_einval .and. index(message, "grad must not be NULL") > 0, message)
    call opt%bind_device("m", "float64", "cpu", [(1, i=1, 8)], c_loc(m), c_loc(dm), [1], stat=stat, errmsg=message)
    call check(stat == opt_einval .and. index(message, "7 is the most") > 0, message)
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
    call check(stat == opt_estate .and. index(message, "free it before") > 0, message)
    call opt%free()
    call opt%free(stat, message)
    call check(stat == opt_ehandle .and. index(message, "is no optimizer") > 0, message)
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

  subroutine check(is_true, what)
    logical, intent(in) :: is_true
    character(*), intent(in) :: what

    if (is_true) return
    write (error_unit, "(2a)") "this is not so: ", what
    error stop 1
  end subroutine
end module

program test_fortran
  use cases, only: copy_one, fail_without_stat, run_all
  implicit none
  character(20) :: which

  call get_command_argument(1, which)
  select case (which)
  case ("copy")
    call copy_one()
  case ("fail")
    call fail_without_stat()
  case default
    call run_all()
  end select
end program
