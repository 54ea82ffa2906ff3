# SPDX-License-Identifier: MIT
# Tests that install the library or include it, and build a project of a user's on it.
function(mnemo_package_test how component)
  add_test(NAME "package: ${how} ${component}"
    COMMAND ${CMAKE_COMMAND} -DHOW=${how} -DCOMPONENT=${component} -DROOT=${PROJECT_SOURCE_DIR} -DPROJECT=${PROJECT_BINARY_DIR}
      -DSOURCE=${CMAKE_CURRENT_SOURCE_DIR}/package -DBINARY=${CMAKE_CURRENT_BINARY_DIR}/package -DCOMPILER=${CMAKE_CXX_COMPILER}
      "-DFLAGS=${CMAKE_CXX_FLAGS}" -DLAUNCHER=${CMAKE_CXX_COMPILER_LAUNCHER} -DGENERATOR=${CMAKE_GENERATOR} -DTORCH_DIR=${Torch_DIR}
      -P ${CMAKE_CURRENT_SOURCE_DIR}/package/run.cmake)
  set_tests_properties("package: ${how} ${component}" PROPERTIES TIMEOUT 300)
endfunction()
get_property(components GLOBAL PROPERTY mnemo_components)
foreach(component core io tokenize sentence_piece host c stemmer faiss nn)
  if(NOT component IN_LIST components)
    mnemo_package_test(missing ${component})
  elseif(EXISTS "${CMAKE_CURRENT_SOURCE_DIR}/package/${component}/main.cpp")
    mnemo_package_test(find ${component})
    mnemo_package_test(subdirectory ${component})
  endif()
endforeach()
find_program(MNEMO_PKG_CONFIG pkg-config)
if(MNEMO_PKG_CONFIG)
  mnemo_package_test(pkgconfig core)
endif()
