# SPDX-License-Identifier: MIT
# libsentencepiece, whose packages bring a pkg-config file or a CMake file of one name or another, as
# mnemo_sentencepiece.
find_path(MnemoSentencePiece_INCLUDE_DIR sentencepiece_processor.h)
find_library(MnemoSentencePiece_LIBRARY sentencepiece)
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(MnemoSentencePiece
  REQUIRED_VARS MnemoSentencePiece_LIBRARY MnemoSentencePiece_INCLUDE_DIR)
mark_as_advanced(MnemoSentencePiece_INCLUDE_DIR MnemoSentencePiece_LIBRARY)
if(MnemoSentencePiece_FOUND AND NOT TARGET mnemo_sentencepiece)
  add_library(mnemo_sentencepiece INTERFACE IMPORTED GLOBAL)
  target_include_directories(mnemo_sentencepiece INTERFACE "${MnemoSentencePiece_INCLUDE_DIR}")
  target_link_libraries(mnemo_sentencepiece INTERFACE "${MnemoSentencePiece_LIBRARY}")
endif()
