# SPDX-License-Identifier: MIT
# Snowball's libstemmer (Debian: libstemmer-dev), which brings no CMake files.
find_path(MNEMO_STEMMER_INCLUDE libstemmer.h)
find_library(MNEMO_STEMMER_LIBRARY stemmer)
mark_as_advanced(MNEMO_STEMMER_INCLUDE MNEMO_STEMMER_LIBRARY)
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(MnemoStemmer DEFAULT_MSG MNEMO_STEMMER_LIBRARY MNEMO_STEMMER_INCLUDE)
if(MnemoStemmer_FOUND AND NOT TARGET mnemo_libstemmer::stemmer)
  add_library(mnemo_libstemmer::stemmer UNKNOWN IMPORTED)
  set_target_properties(mnemo_libstemmer::stemmer PROPERTIES
    IMPORTED_LOCATION "${MNEMO_STEMMER_LIBRARY}" INTERFACE_INCLUDE_DIRECTORIES "${MNEMO_STEMMER_INCLUDE}")
endif()
