// Compiled only, as C++20: the concepts, std::span, named fields, std::stop_callback.

#include <iterator>
#include <ranges>
#include <span>
#include <stop_token>
#include <vrust/vrust.hpp>

static_assert(std::ranges::input_range<vrust::Stream>);
static_assert(std::input_iterator<vrust::Stream::Iterator>);
static_assert(std::ranges::contiguous_range<vrust::Span<const vrust::Event>>);
static_assert(std::convertible_to<vrust::Span<const uint32_t>, std::span<const uint32_t>>);

int main() {
  const vrust::EngineOptions options{.model = "no/such/folder", .max_num_seqs = 8};
  const vrust::Request request{.prompt = "Hello", .temperature = 0.0f, .stop = {"\n"}};
  const auto engine = vrust::Engine::create(options);
  if (!engine) return 0;
  auto stream = engine->submit(request);
  if (!stream) return 1;
  std::stop_source source;
  const std::stop_callback cancel(source.get_token(), stream->canceller());
  size_t bytes = 0;
  // Up to version 15, clang cannot compile the views of GCC's library, whatever they adapt.
#if !defined(__clang__) || __clang_major__ >= 16
  for (const auto text : *stream | std::views::transform(&vrust::Delta::text)) bytes += text.size();
#else
  for (const auto& delta : *stream) bytes += delta.text().size();
#endif
  return bytes > 0 ? 0 : 1;
}
