# Fortran, where there is a compiler: optplug::fortran, the module.

include(CheckLanguage)
check_language(Fortran)
if(CMAKE_Fortran_COMPILER)
  enable_language(Fortran)
  add_subdirectory(${PROJECT_SOURCE_DIR}/bindings/fortran ${PROJECT_BINARY_DIR}/fortran)
else()
  message(STATUS "Skipping the Fortran module and its hosts: no Fortran compiler (Debian, Ubuntu: apt-get install gfortran)")
endif()
