# The C tests as ctest entries, on the model folder VRUST_TEST_MODEL.
set(VRUST_TEST_MODEL "${PROJECT_SOURCE_DIR}/tests/golden/llama3" CACHE PATH
  "Model folder of the C tests")

file(GLOB test_sources CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/tests/c/*.c")
foreach(source IN LISTS test_sources)
  get_filename_component(name "${source}" NAME_WE)
  add_executable(vrust_test_${name} "${source}")
  set_target_properties(vrust_test_${name} PROPERTIES
    C_STANDARD 99 C_STANDARD_REQUIRED ON C_EXTENSIONS OFF)
  target_compile_definitions(vrust_test_${name} PRIVATE _POSIX_C_SOURCE=200809L)
  target_compile_options(vrust_test_${name} PRIVATE -Wall -Wextra -Wpedantic)
  target_link_libraries(vrust_test_${name} PRIVATE vrust::vrust Threads::Threads)
  add_test(NAME vrust.${name} COMMAND vrust_test_${name} "${VRUST_TEST_MODEL}"
    WORKING_DIRECTORY "${PROJECT_SOURCE_DIR}")
  set_tests_properties(vrust.${name} PROPERTIES TIMEOUT 300)
endforeach()
