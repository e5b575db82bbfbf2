# Where the Python package lies, which everything else belongs to: `package`, below the prefix, and for those who
# build without pip `built`, in the build folder, where it runs as well.

include(cmake/interpreter.cmake)
find_package(Python 3.10 REQUIRED COMPONENTS Interpreter Development.Module)
# What was found may be a script that starts the interpreter, as pyenv's are, and another one in another folder.
execute_process(COMMAND ${Python_EXECUTABLE} -c "import sys; print(sys.executable)"
  OUTPUT_VARIABLE Python_EXECUTABLE OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND ${Python_EXECUTABLE} -c "import cffi" RESULT_VARIABLE failed OUTPUT_QUIET ERROR_QUIET)
if(failed)
  file(STRINGS ${PROJECT_SOURCE_DIR}/pyproject.toml dependencies REGEX "^dependencies")
  string(REGEX MATCH "cffi[^\"]*" cffi "${dependencies}")
  message(FATAL_ERROR "${Python_EXECUTABLE} has no cffi, which builds optplug's bridge: run\n"
    "  ${Python_EXECUTABLE} -m pip install '${cffi}'\n"
    "or name the Python of an environment that has it with -DPython_EXECUTABLE=...")
endif()
if(SKBUILD)
  set(package optplug)
else()
  set(OPTPLUG_PACKAGE_DIR lib/python${Python_VERSION_MAJOR}.${Python_VERSION_MINOR}/site-packages/optplug
    CACHE STRING "Where cmake --install puts the Python package optplug, below the prefix")
  set(package ${OPTPLUG_PACKAGE_DIR})
  set(built ${PROJECT_BINARY_DIR}/site/optplug)
endif()
if(APPLE)
  set(origin @loader_path)
else()
  set(origin $ORIGIN)
endif()
# The paths of the build would leave their length behind.
set(CMAKE_BUILD_RPATH_USE_ORIGIN ON)
