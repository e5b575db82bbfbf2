!> The Fortran module, with numbers worked out by hand: all of them are exact in binary.
module arrays
  use, intrinsic :: iso_c_binding, only: c_loc, c_null_ptr
  use, intrinsic :: iso_fortran_env, only: int64, real32, real64
  use checks, only: check, counter
  use optplug
  implicit none
  private

  public :: test_arrays

contains

  subroutine test_arrays()
    call arrays_of_each_kind_are_stepped()
    call ranks_0_to_7_are_stepped()
    call lbfgs_steps_a_matrix_that_is_bound_flat()
    call pytorch_sees_the_true_shape()
    call sections_are_wrapped_by_their_strides()
    call what_cannot_be_wrapped_is_refused()
    call arrays_may_come_with_each_step()
    call a_layer_that_is_pure_steps()
    call closures_see_their_host_and_a_context()
    call reverse_communication_makes_the_same_step()
    call sparse_rows_are_columns()
    call memory_of_a_device_is_bound_by_its_address()
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
    call check(stat == opt_einval .and. message == "parameter 'a': data has 8 dimensions: at most 7 are possible", message)
    call opt%bind("a", a, b, stat, message)
    call check(stat == opt_einval .and. index(message, "data has shape (6) and grad (2, 3)") > 0, message)
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
    call check(stat == opt_einval .and. index(message, "at most 7 are possible") > 0, message)
  end subroutine

  !> Layers of networks are trained in pure procedures, and copied before they have an optimizer.
  subroutine a_layer_that_is_pure_steps()
    type :: layer
      type(optimizer) :: opt
      real(real64) :: w(2) = 1
    end type
    type(layer) :: layers(2), copy
    character(200) :: message
    integer :: i, stat

    copy = layers(1)
    layers(2) = copy
    call check(.not. layers(2)%opt%created(), "nothing is created")
    do i = 1, 2
      call layers(i)%opt%create("SGD(lr=0.5, momentum=0.5)")
      call check(layers(i)%opt%created(), "it is created")
    end do
    call prepare(layers)
    do i = 1, 100
      call train(layers, stat, message)
    end do
    call check(all(abs(layers(1)%w - [-98, -197]) < 1d-9) .and. all(layers(2)%w == layers(1)%w), message)
    call layers(2)%opt%free()
    call train(layers, stat, message)
    call check(stat == opt_ehandle .and. index(message, "opt=0 is not an optimizer") == 1, message)
    call check(layers(2)%w(1) /= layers(1)%w(1) .and. .not. layers(2)%opt%created(), "one was stepped")
  contains
    pure subroutine prepare(these)
      type(layer), intent(inout) :: these(:)
      integer :: k

      do k = 1, size(these)
        call these(k)%opt%bind("w", "float64", shape(these(k)%w))
      end do
    end subroutine

    pure subroutine train(these, stat, message)
      type(layer), intent(inout) :: these(:)
      integer, intent(out) :: stat
      character(*), intent(inout) :: message
      integer :: k

      do k = 1, size(these)
        call these(k)%opt%step(these(k)%w, [1d0, 2d0], stat, message)
      end do
    end subroutine
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
    real(real64) :: loss, error
    logical :: more
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
    call opt%check_gradient(quadratic, error, count)
    call check(error < 1e-6_real64 .and. all(x(:, 2) == 3), "its gradient is right")
    error = 1
    loss = 0
    do
      call opt%check_gradient_iterate(loss, more, error)
      if (.not. more) exit
      loss = sum(x(:, 2)**2)
      dx(:, 2) = 2 * x(:, 2)
    end do
    call check(error < 1e-6_real64, "again, by reverse communication")
    call opt%check_gradient(doubled, context=count, stat=stat, errmsg=message)
    call check(stat == opt_einval .and. index(message, "the gradient of parameter 'x' is twice") == 1, message)

  contains

    subroutine doubled(loss, stat, context)
      real(real64), intent(out) :: loss
      integer, intent(inout) :: stat
      class(*), intent(inout), optional :: context

      call quadratic(loss, stat, context)
      dx(:, 2) = 2 * dx(:, 2)
    end subroutine

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
    call check(stat == opt_einval .and. message == "parameter 'm': data has strides (1) for 2 dimensions", message)
    call opt%bind_device("m", "float64", "cpu", [2, 3], c_loc(m), c_loc(dm), [1, 2], [1, 1], stat, message)
    call check(stat == opt_einval .and. index(message, "grad_strides") > 0, message)
    call opt%bind_device("m", "float64", "cpu", [2, 3], c_loc(m), c_null_ptr, stat=stat, errmsg=message)
    call check(stat == opt_einval .and. index(message, "grad must not be NULL") > 0, message)
    call opt%bind_device("m", "float64", "cpu", [(1, i=1, 8)], c_loc(m), c_loc(dm), [1], stat=stat, errmsg=message)
    call check(stat == opt_einval .and. index(message, "at most 7 are possible") > 0, message)
  end subroutine
end module

program test_fortran
  use arrays, only: test_arrays
  use states, only: copy_one, fail_without_stat, test_states
  implicit none
  character(20) :: which

  call get_command_argument(1, which)
  select case (which)
  case ("copy")
    call copy_one()
  case ("fail")
    call fail_without_stat()
  case default
    call test_arrays()
    call test_states()
  end select
end program
