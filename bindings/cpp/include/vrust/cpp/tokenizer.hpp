/// `Tokenizer`: text to token ids and back, and chats to text.

#ifndef VRUST_CPP_TOKENIZER_HPP
#define VRUST_CPP_TOKENIZER_HPP

#include <vrust/vrust.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>
#include <vrust/cpp/error.hpp>
#include <vrust/cpp/handle.hpp>
#include <vrust/cpp/request.hpp>
#include <vrust/cpp/span.hpp>

namespace vrust {
inline namespace VRUST_CPP_NAMESPACE {

/// How Tokenizer::render renders.
struct RenderOptions {
  /// JSON array of tools; may be empty.
  std::string tools_json{};
  /// JSON object of further variables of the template; may be empty.
  std::string kwargs_json{};
  /// Ends with the opening of an assistant turn.
  bool generation_prompt = true;
  /// Leaves the last message open, so that the model goes on with it.
  bool continue_final = false;
};

/// A tokenizer and the chat template beside it. All threads may use it at the same time.
class Tokenizer {
 public:
  /// Takes a handle over.
  explicit Tokenizer(VrustTokenizer* handle) noexcept : handle_(handle) {}

  /// Opens a model folder's. Needs no engine and no weights.
  static Result<Tokenizer> open(std::string_view folder) {
    VrustTokenizer* handle = nullptr;
    VrustError* err = nullptr;
    const VrustStatus status = vrust_tokenizer_open(folder.data(), folder.size(), &handle, &err);
    if (status < 0) return Error::adopt(status, err);
    return Tokenizer(handle);
  }

  /// The token ids of a text, by default with the model's special tokens (bos).
  Result<std::vector<uint32_t>> encode(std::string_view text, bool special_tokens = true) const {
    const uint32_t flags = special_tokens ? VRUST_ENCODE_SPECIAL_TOKENS : 0;
    // Rarely more ids than bytes: one call is nearly always enough.
    std::vector<uint32_t> ids(text.size() + 16);
    return grow(ids, [&](size_t* n, VrustError** err) {
      return vrust_tokenizer_encode(handle_.get(), text.data(), text.size(), flags, ids.data(),
                                    ids.size(), n, err);
    });
  }

  /// The text of token ids, by default without special tokens.
  Result<std::string> decode(Span<const uint32_t> ids, bool skip_special_tokens = true) const {
    const uint32_t flags = skip_special_tokens ? VRUST_DECODE_SKIP_SPECIAL_TOKENS : 0;
    std::string text(ids.size() * 8 + 16, '\0');
    return grow(text, [&](size_t* n, VrustError** err) {
      return vrust_tokenizer_decode(handle_.get(), ids.data(), ids.size(), flags, text.data(),
                                    text.size(), n, err);
    });
  }

  /// The bytes that one token stands for, which need not be whole UTF-8 scalars.
  /// ErrorCode::not_found for an id outside the vocabulary.
  Result<std::string> token_bytes(uint32_t id) const {
    std::string bytes(32, '\0');
    return grow(bytes, [&](size_t* n, VrustError** err) {
      return vrust_tokenizer_token_bytes(handle_.get(), id,
                                         reinterpret_cast<unsigned char*>(bytes.data()),
                                         bytes.size(), n, err);
    });
  }

  /// A chat as the model sees it, by the checkpoint's template. `chat`: an array of messages.
  /// ErrorCode::chat_template when there is no template or it raises an error.
  Result<std::string> render(const Chat& chat, const RenderOptions& options = {}) const {
    uint32_t flags = options.generation_prompt ? VRUST_CHAT_GENERATION_PROMPT : 0;
    if (options.continue_final) flags |= VRUST_CHAT_CONTINUE_FINAL;
    const char* tools = nullptr;
    const char* kwargs = nullptr;
    size_t tools_len = 0;
    size_t kwargs_len = 0;
    detail::set_text(options.tools_json, tools, tools_len);
    detail::set_text(options.kwargs_json, kwargs, kwargs_len);
    VrustBytes* text = nullptr;
    VrustError* err = nullptr;
    const VrustStatus status =
        vrust_chat_render(handle_.get(), chat.json.data(), chat.json.size(), tools, tools_len,
                          kwargs, kwargs_len, flags, &text, &err);
    if (status < 0) return Error::adopt(status, err);
    return detail::take(text);
  }

  /// The C handle, which stays this object's.
  VrustTokenizer* handle() const noexcept { return handle_.get(); }

 private:
  // Calls until the buffer is large enough, then cuts it to what was written.
  template <typename Buffer, typename Call>
  static Result<Buffer> grow(Buffer& buffer, Call call) {
    for (;;) {
      size_t needed = 0;
      VrustError* err = nullptr;
      const VrustStatus status = call(&needed, &err);
      if (status < 0 && status != VRUST_ERROR_BUFFER_TOO_SMALL) return Error::adopt(status, err);
      vrust_error_destroy(err);
      buffer.resize(needed);
      if (status >= 0) return std::move(buffer);
    }
  }

  detail::TokenizerHandle handle_;
};

}  // namespace VRUST_CPP_NAMESPACE
}  // namespace vrust

#endif
