# Where the Python package lies, which everything else belongs to: `package`, below the prefix, and for those who
# build without pip `built`, in the build folder, where it runs as well.

find_package(Python 3.10 REQUIRED COMPONENTS Interpreter Development.Module)
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
