/// `Span<T>`: elements that lie one after another somewhere else.

#ifndef VRUST_CPP_SPAN_HPP
#define VRUST_CPP_SPAN_HPP

#include <cstddef>
#include <type_traits>
#include <vector>
#include <vrust/cpp/config.hpp>

namespace vrust {
inline namespace VRUST_CPP_NAMESPACE {

/// A view of `size()` elements that something else owns; std::span converts from it.
template <typename T>
class Span {
 public:
  using element_type = T;
  using value_type = std::remove_cv_t<T>;
  using iterator = T*;

  /// Nothing.
  constexpr Span() noexcept = default;
  /// `size` elements at `data`.
  constexpr Span(T* data, size_t size) noexcept : data_(data), size_(size) {}
  /// The elements of a vector, which must outlive the view and not grow.
  Span(const std::vector<value_type>& from) noexcept : Span(from.data(), from.size()) {
    static_assert(std::is_const_v<T>, "a view of a const vector is const");
  }

  /// The first element.
  constexpr T* data() const noexcept { return data_; }
  /// Number of elements.
  constexpr size_t size() const noexcept { return size_; }
  /// Whether there are none.
  constexpr bool empty() const noexcept { return size_ == 0; }
  /// The first element.
  constexpr T* begin() const noexcept { return data_; }
  /// Past the last element.
  constexpr T* end() const noexcept { return data_ + size_; }
  /// One element; `index` must be below `size()`.
  constexpr T& operator[](size_t index) const noexcept { return data_[index]; }
  /// Without the first `count` elements, which must be there.
  constexpr Span drop(size_t count) const noexcept { return {data_ + count, size_ - count}; }
  /// A copy of the elements.
  std::vector<value_type> to_vector() const { return std::vector<value_type>(begin(), end()); }

 private:
  T* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace VRUST_CPP_NAMESPACE
}  // namespace vrust

#endif
