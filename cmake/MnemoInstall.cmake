# SPDX-License-Identifier: MIT
# One export file a component: find_package(mnemo COMPONENTS core faiss) needs no LibTorch.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)
set(package_dir "${CMAKE_INSTALL_LIBDIR}/cmake/mnemo")
get_property(components GLOBAL PROPERTY mnemo_components)
foreach(component ${components})
  install(TARGETS mnemo_${component} EXPORT mnemo-${component} FILE_SET HEADERS DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}")
  install(EXPORT mnemo-${component} NAMESPACE mnemo:: DESTINATION "${package_dir}")
endforeach()
configure_package_config_file(cmake/mnemoConfig.cmake.in mnemoConfig.cmake INSTALL_DESTINATION "${package_dir}")
set(independent ARCH_INDEPENDENT)
if(TARGET mnemo_c)
  set(independent "") # a compiled library is for one processor
endif()
write_basic_package_version_file(mnemoConfigVersion.cmake COMPATIBILITY SameMinorVersion ${independent})
install(FILES "${CMAKE_CURRENT_BINARY_DIR}/mnemoConfig.cmake" "${CMAKE_CURRENT_BINARY_DIR}/mnemoConfigVersion.cmake"
              cmake/FindMnemoTorch.cmake cmake/FindMnemoUtf8proc.cmake cmake/FindMnemoStemmer.cmake
              cmake/FindMnemoSentencePiece.cmake
        DESTINATION "${package_dir}")
configure_file(cmake/mnemo.pc.in mnemo.pc @ONLY)
install(FILES "${CMAKE_CURRENT_BINARY_DIR}/mnemo.pc" DESTINATION "${CMAKE_INSTALL_DATAROOTDIR}/pkgconfig")
