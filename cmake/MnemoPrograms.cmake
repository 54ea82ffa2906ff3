# SPDX-License-Identifier: MIT
# What tests, examples and benchmarks share. Users of the library never see this file.
add_library(mnemo_warnings INTERFACE)
target_compile_options(mnemo_warnings INTERFACE -Wall -Wextra -Wpedantic -Wshadow -Wnon-virtual-dtor
  $<$<BOOL:${MNEMO_WERROR}>:-Werror>)

# The headers of LibTorch and FAISS are other people's: no warnings from them.
foreach(target torch torch_cpu c10 faiss)
  if(TARGET ${target})
    get_target_property(dirs ${target} INTERFACE_INCLUDE_DIRECTORIES)
    if(dirs)
      set_property(TARGET ${target} APPEND PROPERTY INTERFACE_SYSTEM_INCLUDE_DIRECTORIES ${dirs})
    endif()
  endif()
endforeach()

# Two LibTorch compilations at once fit small machines; each takes 1.3 GB.
set_property(GLOBAL APPEND PROPERTY JOB_POOLS torch=2)

# mnemo_program(NAME SOURCES files... LINK targets...)
function(mnemo_program name)
  cmake_parse_arguments(arg "" "" "SOURCES;LINK" ${ARGN})
  add_executable(${name} ${arg_SOURCES})
  target_link_libraries(${name} PRIVATE ${arg_LINK} mnemo_warnings)
  if("mnemo::nn" IN_LIST arg_LINK)
    set_target_properties(${name} PROPERTIES JOB_POOL_COMPILE torch)
    if(MNEMO_PCH)
      target_precompile_headers(${name} PRIVATE <torch/torch.h>)
    endif()
  endif()
endfunction()

# mnemo_have(VAR components...): VAR is true if all of them are built.
function(mnemo_have var)
  set(${var} TRUE PARENT_SCOPE)
  foreach(component ${ARGN})
    if(NOT TARGET mnemo::${component})
      set(${var} FALSE PARENT_SCOPE)
    endif()
  endforeach()
endfunction()
