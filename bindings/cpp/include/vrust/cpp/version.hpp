/// Which library this is.

#ifndef VRUST_CPP_VERSION_HPP
#define VRUST_CPP_VERSION_HPP

#include <vrust/vrust.h>

#include <cstdint>
#include <vrust/cpp/config.hpp>

namespace vrust {
inline namespace VRUST_CPP_NAMESPACE {

/// Version of the library that this header came with.
inline constexpr const char* header_version = VRUST_VERSION;

/// Version of the loaded library, such as "0.1.0". Static. Any thread.
inline const char* version() noexcept { return vrust_version_string(); }

/// Version of the loaded library's ABI: major << 16 | minor. Any thread.
inline uint32_t abi_version() noexcept { return vrust_abi_version(); }

/// How the loaded library was built, a JSON object. Static. Any thread.
inline const char* build_info_json() noexcept { return vrust_build_info_json(); }

}  // namespace VRUST_CPP_NAMESPACE
}  // namespace vrust

#endif
