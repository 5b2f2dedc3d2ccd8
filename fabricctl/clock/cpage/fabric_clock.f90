! The job clock for Fortran 2003: libfabricclock by its C interface (fabric_clock.h).
module fabric_clock
  use, intrinsic :: iso_c_binding
  implicit none

  type, bind(c) :: fabric_clock_reading
    integer(c_int64_t) :: time_ns, earliest_ns, latest_ns, likely_ns
    integer(c_int32_t) :: status
  end type

  interface
    ! path: c_null_ptr for the job's own clock. c_null_ptr comes back when there is none.
    function fabric_clock_open(path) bind(c)
      import :: c_ptr
      type(c_ptr), value :: path
      type(c_ptr) :: fabric_clock_open
    end function
    function fabric_clock_now(clock, reading) bind(c)
      import :: c_ptr, c_int, fabric_clock_reading
      type(c_ptr), value :: clock
      type(fabric_clock_reading), intent(out) :: reading
      integer(c_int) :: fabric_clock_now
    end function
    function fabric_clock_compare(a, b) bind(c)
      import :: c_int, fabric_clock_reading
      type(fabric_clock_reading), intent(in) :: a, b
      integer(c_int) :: fabric_clock_compare
    end function
    subroutine fabric_clock_close(clock) bind(c)
      import :: c_ptr
      type(c_ptr), value :: clock
    end subroutine
  end interface
end module
