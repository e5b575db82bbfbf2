# find_package(optplug CONFIG REQUIRED) gives optplug::optplug, the C library; optplug::cxx, for C++17; and,
# where Fortran is enabled before it, optplug::fortran, built from the module's source by your compiler.

get_filename_component(_optplug_root "${CMAKE_CURRENT_LIST_FILE}" REALPATH) # which may be a link's target
get_filename_component(_optplug_root "${_optplug_root}/../../../.." ABSOLUTE)

if(NOT TARGET optplug::optplug)
  add_library(optplug::optplug SHARED IMPORTED)
  set_target_properties(optplug::optplug PROPERTIES
    IMPORTED_LOCATION ${_optplug_root}/lib/${CMAKE_SHARED_LIBRARY_PREFIX}optplug${CMAKE_SHARED_LIBRARY_SUFFIX}
    INTERFACE_INCLUDE_DIRECTORIES ${_optplug_root}/include)
  add_library(optplug::cxx INTERFACE IMPORTED)
  target_link_libraries(optplug::cxx INTERFACE optplug::optplug)
  target_compile_features(optplug::cxx INTERFACE cxx_std_17)
endif()
if(CMAKE_Fortran_COMPILER_LOADED AND NOT TARGET optplug::fortran)
  add_subdirectory(${_optplug_root}/fortran ${CMAKE_CURRENT_BINARY_DIR}/optplug-fortran EXCLUDE_FROM_ALL)
endif()
unset(_optplug_root)
