# The environment of the work place: build/venv, with the package and what it and the demo need; the target
# `tools`, part of all, adds the rest of constraints.txt, for the tests and for who works here.
#
# Sets OPTPLUG_PYTHON, its interpreter, and OPTPLUG_SITE, where its packages lie, and makes
# optplug::optplug, the library as pip installed it there, and optplug::cxx, for C++.

include(cmake/interpreter.cmake)
find_package(Python ${Python_VERSION} EXACT QUIET COMPONENTS Interpreter Development.Module)
if(NOT Python_FOUND)
  message(FATAL_ERROR "${Python_EXECUTABLE} (${Python_VERSION}) has no C headers.\n"
    "Debian, Ubuntu: apt-get install python${Python_VERSION_MAJOR}.${Python_VERSION_MINOR}-dev\n"
    "Fedora: dnf install python3-devel\n"
    "Or name another Python with -DPython_EXECUTABLE=...")
endif()

set(venv ${CMAKE_BINARY_DIR}/venv)
set(OPTPLUG_PYTHON ${venv}/bin/python)
# Whatever Python environment is active, or set wrong, stays out.
set(clean ${CMAKE_COMMAND} -E env --unset=PYTHONHOME --unset=PYTHONPATH --unset=VIRTUAL_ENV)
if(NOT EXISTS ${venv}/bin/pip)
  message(STATUS "Making ${venv} with Python ${Python_VERSION} (${Python_EXECUTABLE})")
  execute_process(COMMAND ${clean} ${Python_EXECUTABLE} -m venv ${venv} RESULT_VARIABLE failed)
  if(failed)
    message(FATAL_ERROR "${Python_EXECUTABLE} cannot make a virtual environment.\n"
      "Debian, Ubuntu: apt-get install python${Python_VERSION_MAJOR}.${Python_VERSION_MINOR}-venv")
  endif()
endif()
execute_process(
  COMMAND ${clean} ${OPTPLUG_PYTHON} -c "import sysconfig; print(sysconfig.get_path('platlib'))"
  OUTPUT_VARIABLE OPTPLUG_SITE OUTPUT_STRIP_TRAILING_WHITESPACE RESULT_VARIABLE failed)
if(failed)
  message(FATAL_ERROR "${OPTPLUG_PYTHON} does not run: delete ${venv} and configure again")
endif()

set(OPTPLUG_TORCH "$ENV{OPTPLUG_TORCH}" CACHE STRING "The PyTorch to install, 2.14.1 for example, instead of the pinned one")
set(OPTPLUG_ALSO "" CACHE STRING "What pip is to install beside what constraints.txt pins: NAME==VERSION;...")
file(READ ${PROJECT_SOURCE_DIR}/constraints.txt pinned)
set(needed torch numpy cffi scikit-build-core matplotlib) # `pip check` says what is missing
if(OPTPLUG_TORCH)
  string(REGEX REPLACE "\ntorch==[^\n]*" "\ntorch==${OPTPLUG_TORCH}" pinned "${pinned}")
endif()
foreach(requirement IN LISTS OPTPLUG_ALSO)
  string(REGEX REPLACE "=.*" "" name ${requirement})
  string(APPEND pinned "${requirement}\n")
  list(APPEND needed ${name})
endforeach()
file(CONFIGURE OUTPUT ${venv}.txt CONTENT "${pinned}" @ONLY)
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/constraints.txt)

set(pip ${clean} ${OPTPLUG_PYTHON} -m pip --disable-pip-version-check)
add_custom_command(OUTPUT ${venv}/pinned.stamp
  COMMAND ${pip} install -c ${venv}.txt ${needed}
  COMMAND ${CMAKE_COMMAND} -E touch ${venv}/pinned.stamp
  DEPENDS ${venv}.txt
  COMMENT "Installing PyTorch (the first time: minutes)"
  USES_TERMINAL VERBATIM)

file(GLOB_RECURSE sources CONFIGURE_DEPENDS
  ${PROJECT_SOURCE_DIR}/bindings/* ${PROJECT_SOURCE_DIR}/csrc/* ${PROJECT_SOURCE_DIR}/include/*
  ${PROJECT_SOURCE_DIR}/python/optplug/*.py)
set(library ${OPTPLUG_SITE}/optplug/lib/${CMAKE_SHARED_LIBRARY_PREFIX}optplug${CMAKE_SHARED_LIBRARY_SUFFIX})
add_custom_command(OUTPUT ${venv}/package.stamp
  BYPRODUCTS ${library}
  COMMAND ${pip} install --quiet --no-build-isolation --no-deps --force-reinstall
          --config-settings=cmake.define.CMAKE_C_COMPILER=${CMAKE_C_COMPILER} ${PROJECT_SOURCE_DIR}
  COMMAND ${pip} check
  COMMAND ${CMAKE_COMMAND} -E touch ${venv}/package.stamp
  DEPENDS ${venv}/pinned.stamp ${sources}
          ${PROJECT_SOURCE_DIR}/CMakeLists.txt ${PROJECT_SOURCE_DIR}/pyproject.toml
  COMMENT "Installing optplug into ${venv}"
  VERBATIM)
add_custom_target(package DEPENDS ${venv}/package.stamp)

add_custom_command(OUTPUT ${venv}/tools.stamp
  COMMAND ${pip} install -r ${venv}.txt
  COMMAND ${CMAKE_COMMAND} -E touch ${venv}/tools.stamp
  DEPENDS ${venv}/pinned.stamp
  COMMENT "Installing what the tests need"
  USES_TERMINAL VERBATIM)
add_custom_target(tools ALL DEPENDS ${venv}/tools.stamp)
add_dependencies(tools package) # one pip at a time

file(MAKE_DIRECTORY ${OPTPLUG_SITE}/optplug/include) # CMake wants it there now, before pip has run
add_library(optplug::optplug SHARED IMPORTED GLOBAL)
set_target_properties(optplug::optplug PROPERTIES
  IMPORTED_LOCATION ${library}
  INTERFACE_INCLUDE_DIRECTORIES ${OPTPLUG_SITE}/optplug/include)
add_dependencies(optplug::optplug package)

add_library(optplug::cxx INTERFACE IMPORTED GLOBAL)
target_link_libraries(optplug::cxx INTERFACE optplug::optplug)
target_compile_features(optplug::cxx INTERFACE cxx_std_17)
