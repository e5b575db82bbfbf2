# How liboptplug is built: for the package, and once more for each sanitizer.

find_package(Threads REQUIRED)

# A step without Python is a dozen calls from file to file, which linking makes none of: 30 of its 200 ns.
include(CheckIPOSupported)
check_ipo_supported(RESULT links_across_files OUTPUT reason LANGUAGES C)

function(add_optplug_library name)
  add_library(${name} SHARED)
  foreach(source api apart arithmetic attach attributes call callback checkpoint early_end elementwise end error find fork gradients handle holdings import library
      list loans log lying mkl openmp operation plan pyapi ranks rates record room root rows runtime scalars schedule shield signals staging
      start strided torch variable)
    target_sources(${name} PRIVATE ${CMAKE_CURRENT_FUNCTION_LIST_DIR}/${source}.c)
  endforeach()
  # Loops over values, which -O2 makes no vectors of; no sum is fused with a product but where that is written.
  set_source_files_properties(
    ${CMAKE_CURRENT_FUNCTION_LIST_DIR}/elementwise.c ${CMAKE_CURRENT_FUNCTION_LIST_DIR}/gradients.c
    ${CMAKE_CURRENT_FUNCTION_LIST_DIR}/root.c ${CMAKE_CURRENT_FUNCTION_LIST_DIR}/rows.c
    ${CMAKE_CURRENT_FUNCTION_LIST_DIR}/strided.c PROPERTIES
    COMPILE_OPTIONS "$<$<NOT:$<CONFIG:Debug>>:-O3>;-ffp-contract=off;-fno-math-errno;-fno-trapping-math")
  set_target_properties(${name} PROPERTIES
    OUTPUT_NAME optplug
    C_STANDARD 11
    C_VISIBILITY_PRESET hidden
    INTERPROCEDURAL_OPTIMIZATION ${links_across_files}
    INTERPROCEDURAL_OPTIMIZATION_DEBUG OFF
    PUBLIC_HEADER "${PROJECT_SOURCE_DIR}/include/optplug.h;${PROJECT_SOURCE_DIR}/include/optplug.hpp;${PROJECT_SOURCE_DIR}/include/optplug_mpi.h;${PROJECT_SOURCE_DIR}/include/optplug_mpi.f90")
  target_compile_options(${name} PRIVATE -Wall -Wextra)
  target_compile_definitions(${name} PRIVATE
    PYTHON_VERSION="${Python_VERSION_MAJOR}.${Python_VERSION_MINOR}")
  target_include_directories(${name}
    PUBLIC $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include>
    PRIVATE ${Python_INCLUDE_DIRS}) # types only: nothing of Python is linked
  target_link_libraries(${name} PRIVATE Threads::Threads ${CMAKE_DL_LIBS} m)
  if(APPLE)
    # clang has no aliases there, which api.h makes elsewhere.
    file(READ ${PROJECT_SOURCE_DIR}/include/optplug.h header)
    string(REGEX MATCHALL "\n(int|int64_t|const char \\*) ?opt_[a-z0-9_]+" aliases "${header}")
    list(TRANSFORM aliases REPLACE ".*opt_" "")
    list(TRANSFORM aliases REPLACE "(.+)" "_opt_\\1 _optplug_\\1")
    list(JOIN aliases "\n" aliases)
    file(CONFIGURE OUTPUT ${CMAKE_CURRENT_BINARY_DIR}/aliases.txt CONTENT "${aliases}" @ONLY)
    target_link_options(${name} PRIVATE -Wl,-alias_list,${CMAKE_CURRENT_BINARY_DIR}/aliases.txt)
  else()
    # Bsymbolic: our own calls reach our own functions, whatever functions the host has.
    # nodelete: Python cannot be unloaded, so a host that closes and opens us again must find it running.
    # defs: a function of Python that is called by name instead of through dlsym is an error here.
    set(exports ${CMAKE_CURRENT_FUNCTION_LIST_DIR}/exports.map)
    target_link_options(${name} PRIVATE
      -Wl,-z,nodelete -Wl,-z,defs -Wl,-Bsymbolic-functions -Wl,--version-script=${exports})
    set_target_properties(${name} PROPERTIES LINK_DEPENDS ${exports})
  endif()
endfunction()
