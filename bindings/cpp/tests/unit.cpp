// A second translation unit, which includes everything once more.

#include "units.hpp"

#include <vrust/cpp/stream.hpp>
#include <vrust/vrust.hpp>

const char* other_version() { return vrust::version(); }

vrust::Result<int> (*other_function())() { return &shared_function; }
