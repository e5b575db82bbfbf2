# What a machine may lack: C++, Fortran and MPI, enabled here where there is one that works, and `skip`, which
# says what to install.

include(CheckLanguage)

# .ci/packages has all that tests can use.
macro(skip what packages)
  if(DEFINED ENV{OPTPLUG_TEST_MAY_SKIP} AND NOT "${what}" MATCHES "$ENV{OPTPLUG_TEST_MAY_SKIP}")
    message(FATAL_ERROR "Nothing may be skipped here, and ${what}: apt-get install ${packages}")
  endif()
  message(STATUS "Skipping ${what} (Debian, Ubuntu: apt-get install ${packages})")
endmacro()

# check_language keeps NOTFOUND for ever, and a NOTFOUND that is passed on is taken for a compiler's name.
macro(enable_if_found language)
  if(NOT CMAKE_${language}_COMPILER)
    unset(CMAKE_${language}_COMPILER CACHE)
  endif()
  check_language(${language})
  if(CMAKE_${language}_COMPILER)
    enable_language(${language})
  else()
    unset(CMAKE_${language}_COMPILER CACHE)
    unset(CMAKE_${language}_COMPILER)
  endif()
endmacro()

enable_if_found(CXX)
if(NOT CMAKE_CXX_COMPILER)
  skip("C++ hosts, and LibTorch in the benchmark: no C++ compiler" g++)
endif()

enable_if_found(Fortran)
if(CMAKE_Fortran_COMPILER)
  add_subdirectory(${PROJECT_SOURCE_DIR}/bindings/fortran ${PROJECT_BINARY_DIR}/fortran)
else()
  skip("the Fortran module and its hosts: no Fortran compiler" gfortran)
endif()

find_package(MPI COMPONENTS C QUIET)
if(MPI_C_FOUND AND CMAKE_Fortran_COMPILER)
  find_package(MPI COMPONENTS Fortran QUIET)
endif()
if(NOT MPI_C_FOUND OR NOT MPIEXEC_EXECUTABLE)
  set(MPI_C_FOUND FALSE)
  skip("hosts under MPI: no MPI, or no mpiexec" "libopenmpi-dev openmpi-bin")
elseif(NOT MPI_Fortran_HAVE_F08_MODULE)
  skip("ranks in Fortran: no gfortran, or no mpi_f08" "gfortran libopenmpi-dev")
endif()
