/// What all of the headers share: whether there are exceptions, and the namespace.

#ifndef VRUST_CPP_CONFIG_HPP
#define VRUST_CPP_CONFIG_HPP

#if !defined(VRUST_NO_EXCEPTIONS) && !defined(__cpp_exceptions)
/// Defined: nothing here throws an Error. On by itself under -fno-exceptions.
#define VRUST_NO_EXCEPTIONS 1
#endif

// Objects built with and without exceptions may meet in one program. Their inline functions
// differ, so their names must as well.
#ifdef VRUST_NO_EXCEPTIONS
#define VRUST_CPP_NAMESPACE v0_no_exceptions
#else
#define VRUST_CPP_NAMESPACE v0
#endif

#endif
