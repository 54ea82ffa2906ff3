# SPDX-License-Identifier: MIT
# libutf8proc, whose packages bring a pkg-config file or a CMake file of one name or another, as mnemo_utf8proc.
find_path(MnemoUtf8proc_INCLUDE_DIR utf8proc.h)
find_library(MnemoUtf8proc_LIBRARY utf8proc)
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(MnemoUtf8proc REQUIRED_VARS MnemoUtf8proc_LIBRARY MnemoUtf8proc_INCLUDE_DIR)
mark_as_advanced(MnemoUtf8proc_INCLUDE_DIR MnemoUtf8proc_LIBRARY)
if(MnemoUtf8proc_FOUND AND NOT TARGET mnemo_utf8proc)
  add_library(mnemo_utf8proc INTERFACE IMPORTED GLOBAL)
  target_include_directories(mnemo_utf8proc INTERFACE "${MnemoUtf8proc_INCLUDE_DIR}")
  target_link_libraries(mnemo_utf8proc INTERFACE "${MnemoUtf8proc_LIBRARY}")
endif()
