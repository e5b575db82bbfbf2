# How liboptplug is built: for the package, and once more for each sanitizer.

find_package(Threads REQUIRED)

function(add_optplug_library name)
  add_library(${name} SHARED)
  foreach(source api error find handle host lent plan)
    target_sources(${name} PRIVATE ${CMAKE_CURRENT_FUNCTION_LIST_DIR}/${source}.c)
  endforeach()
  set_target_properties(${name} PROPERTIES
    OUTPUT_NAME optplug
    C_STANDARD 11
    C_VISIBILITY_PRESET hidden
    PUBLIC_HEADER "${PROJECT_SOURCE_DIR}/include/optplug.h;${PROJECT_SOURCE_DIR}/include/optplug.hpp")
  target_compile_options(${name} PRIVATE -Wall -Wextra)
  target_compile_definitions(${name} PRIVATE
    PYTHON_VERSION="${Python_VERSION_MAJOR}.${Python_VERSION_MINOR}")
  target_include_directories(${name}
    PUBLIC $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include>
    PRIVATE ${Python_INCLUDE_DIRS}) # types only: nothing of Python is linked
  target_link_libraries(${name} PRIVATE Threads::Threads ${CMAKE_DL_LIBS} m)
  if(NOT APPLE)
    # nodelete: Python cannot be unloaded, so a host that closes and opens us again must find it running.
    # defs: a function of Python that is called by name instead of through dlsym is an error here.
    target_link_options(${name} PRIVATE -Wl,-z,nodelete -Wl,-z,defs)
  endif()
endfunction()
