! Heat on a ring in Fortran and MPI, with checkpoints in files: goes on where it was when a rank or a
! node dies.
!
!   mpifort -O2 -o stencil examples/stencil.f90 -lfabricckpt
!   fabricctl run --spares 1 ./stencil 2000 200
!
! Arguments: steps, steps between checkpoints, milliseconds of sleep in each step. Rank 0 prints where it began and a sum over the bits of
! the whole ring: the same whatever died.
program stencil
  use, intrinsic :: iso_c_binding
  use, intrinsic :: iso_fortran_env, only: int64, real64, output_unit
  use mpi
  implicit none
  integer, parameter :: cells = 4096
  interface
    function fabric_ckpt_dir() bind(c) result(dir)
      import :: c_ptr
      type(c_ptr) :: dir
    end function
    function fabric_ckpt_commit(step) bind(c) result(status)
      import :: c_int64_t, c_int
      integer(c_int64_t), value :: step
      integer(c_int) :: status
    end function
    function fabric_ckpt_restore(step, before) bind(c) result(status)
      import :: c_int64_t, c_int
      integer(c_int64_t), intent(out) :: step
      integer(c_int64_t), value :: before
      integer(c_int) :: status
    end function
    function usleep(microseconds) bind(c) result(status)
      import :: c_int
      integer(c_int), value :: microseconds
      integer(c_int) :: status
    end function
    function fabric_ckpt_done() bind(c) result(status)
      import :: c_int
      integer(c_int) :: status
    end function
  end interface
  real(real64) :: heat(0:cells + 1), now, before
  integer(int64) :: steps, every, begin, n, sum_of_bits, total
  integer :: rank, ranks, left, right, error, i, unit
  integer(c_int) :: status, pause_us

  call MPI_Init(error)
  call MPI_Comm_rank(MPI_COMM_WORLD, rank, error)
  call MPI_Comm_size(MPI_COMM_WORLD, ranks, error)
  steps = argument(1, 1000_int64)
  every = argument(2, 100_int64)
  pause_us = int(argument(3, 0_int64) * 1000, c_int)
  left = mod(rank + ranks - 1, ranks)
  right = mod(rank + 1, ranks)
  do i = 1, cells
    heat(i) = real(mod(int(i, int64) * 7919 + rank * 104729, 65536_int64), real64) / 65536
  end do

  status = fabric_ckpt_restore(begin, 0_int64)
  if (status == 0) then
    open (newunit=unit, file=place(), access='stream', form='unformatted', status='old')
    read (unit) heat(1:cells)
    close (unit)
  else if (status /= 66) then ! 66: the first start
    call MPI_Abort(MPI_COMM_WORLD, 1, error)
  end if
  if (rank == 0) write (output_unit, '(a,i0)') 'from step ', begin
  flush (output_unit)

  do n = begin + 1, steps
    call MPI_Sendrecv(heat(cells), 1, MPI_DOUBLE_PRECISION, right, 0, heat(0), 1, &
                      MPI_DOUBLE_PRECISION, left, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE, error)
    call MPI_Sendrecv(heat(1), 1, MPI_DOUBLE_PRECISION, left, 1, heat(cells + 1), 1, &
                      MPI_DOUBLE_PRECISION, right, 1, MPI_COMM_WORLD, MPI_STATUS_IGNORE, error)
    before = heat(0)
    do i = 1, cells
      now = heat(i)
      heat(i) = heat(i) + 0.25_real64 * (before - 2 * now + heat(i + 1))
      before = now
    end do
    status = usleep(pause_us)
    if (mod(n, every) == 0 .and. n < steps) then
      open (newunit=unit, file=place(), access='stream', form='unformatted', status='replace')
      write (unit) heat(1:cells)
      close (unit)
      if (fabric_ckpt_commit(n) /= 0) print '(a,i0,a)', 'step ', n, ' is not saved'
    end if
  end do

  sum_of_bits = 0
  do i = 1, cells
    sum_of_bits = ieor(ishftc(sum_of_bits, 7), transfer(heat(i), sum_of_bits))
  end do
  sum_of_bits = ishftc(sum_of_bits, rank)
  call MPI_Reduce(sum_of_bits, total, 1, MPI_INTEGER8, MPI_BXOR, 0, MPI_COMM_WORLD, error)
  if (rank == 0) write (output_unit, '(a,z16.16)') 'ring ', total
  status = fabric_ckpt_done()
  call MPI_Finalize(error)

contains

  integer(int64) function argument(nth, default)
    integer, intent(in) :: nth
    integer(int64), intent(in) :: default
    character(len=32) :: text
    call get_command_argument(nth, text)
    argument = default
    if (text /= '') read (text, *) argument
  end function

  function place() result(path)
    character(len=:), allocatable :: path
    character(kind=c_char), pointer :: letters(:)
    type(c_ptr) :: dir
    integer :: at
    dir = fabric_ckpt_dir()
    if (.not. c_associated(dir)) call MPI_Abort(MPI_COMM_WORLD, 1, error)
    call c_f_pointer(dir, letters, [4096])
    path = ''
    do at = 1, 4096
      if (letters(at) == c_null_char) exit
      path = path // letters(at)
    end do
    path = path // '/heat.bin'
  end function
end program
