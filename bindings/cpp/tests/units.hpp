// What the translation units of the test cpp.cpp have of one another.

#ifndef VRUST_CPP_TESTS_UNITS_HPP
#define VRUST_CPP_TESTS_UNITS_HPP

#include <string>
#include <vrust/vrust.hpp>

// The same function wherever it is named.
inline vrust::Result<int> shared_function() { return 5; }

// Of unit.cpp: what it sees of the same header.
const char* other_version();
vrust::Result<int> (*other_function())();

// Of unit_plain.cpp, which is built without exceptions.
const char* plain_version();
int plain_failure(const std::string& model);

#endif
