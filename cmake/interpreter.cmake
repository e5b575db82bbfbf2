# Python_EXECUTABLE, and Python_VERSION: one on which optplug runs.

find_package(Python 3.10 QUIET COMPONENTS Interpreter)
if(NOT Python_FOUND)
  message(FATAL_ERROR "No Python 3.10 or newer was found: install one, or name it with -DPython_EXECUTABLE=...")
endif()
execute_process(
  COMMAND ${Python_EXECUTABLE} -c "import sys, sysconfig; sys.exit(bool(sysconfig.get_config_var('Py_GIL_DISABLED')))"
  RESULT_VARIABLE failed)
if(failed)
  message(FATAL_ERROR "${Python_EXECUTABLE} is a free-threaded Python, which optplug does not support: "
    "name one with the global interpreter lock, -DPython_EXECUTABLE=...")
endif()
