/// `ChatParser`: tells reasoning and tool calls from content in a chat model's text as it comes.

#ifndef VRUST_CPP_CHAT_PARSER_HPP
#define VRUST_CPP_CHAT_PARSER_HPP

#include <vrust/vrust.h>

#include <string>
#include <string_view>
#include <vrust/cpp/error.hpp>
#include <vrust/cpp/handle.hpp>
#include <vrust/cpp/request.hpp>
#include <vrust/cpp/tokenizer.hpp>

namespace vrust {
inline namespace VRUST_CPP_NAMESPACE {

/// What a ChatParser looks for.
struct ChatParserOptions {
  /// "auto" (what the chat template shows), "none", "hermes", "llama3_json", "mistral", "pythonic"
  /// or "qwen3_xml".
  std::string tool_format = "auto";
  /// "auto", "none", "think" or "mistral".
  std::string reasoning_format = "auto";
  /// The request's JSON array of OpenAI tools; without any, no calls are looked for.
  std::string tools_json{};
  /// The request's `chat_template_kwargs`, a JSON object; may be empty.
  std::string kwargs_json{};
};

/// What a ChatParser has decided.
struct ChatParserInfo {
  /// A format's first name; empty when no calls are looked for.
  std::string tool_format{};
  /// A format's first name; empty when no reasoning is looked for.
  std::string reasoning_format{};
  /// The prompt has opened the model's thoughts already.
  bool starts_in_reasoning = false;
  /// Markers are special tokens: ask with Request::skip_special_tokens = false.
  bool keep_special_tokens = false;
};

/// A parser for the text of one choice. It outlives its tokenizer. Pieces that threads push at the
/// same time are taken one after the other.
class ChatParser {
 public:
  /// Takes a handle over.
  explicit ChatParser(VrustChatParser* handle) noexcept : handle_(handle) {}

  /// A parser for answers of this tokenizer's model. ErrorCode::invalid_argument for an unknown
  /// format and malformed tools; ErrorCode::chat_template when the template cannot be used.
  static Result<ChatParser> create(const Tokenizer& tokenizer,
                                   const ChatParserOptions& options = {}) {
    const std::string json = options_json(options);
    VrustChatParser* handle = nullptr;
    VrustError* err = nullptr;
    const VrustStatus status =
        vrust_chat_parser_create(tokenizer.handle(), json.data(), json.size(), &handle, &err);
    if (status < 0) return Error::adopt(status, err);
    return ChatParser(handle);
  }

  /// What was decided.
  Result<ChatParserInfo> info() const {
    Result<std::string> json = read([this](VrustBytes** out, VrustError** err) {
      return vrust_chat_parser_info_json(handle_.get(), out, err);
    });
    if (!json) return json.error();
    return ChatParserInfo{text_field(*json, "tool_format"), text_field(*json, "reasoning_format"),
                          bool_field(*json, "starts_in_reasoning"),
                          bool_field(*json, "keep_special_tokens")};
  }

  /// Takes the text that came next, whole UTF-8 characters, and gives what it makes certain: a
  /// JSON array, often empty, of OpenAI's streaming deltas, each with one of `reasoning`, `content`
  /// and `tool_calls`. However the text is cut, the deltas join to the same.
  Result<std::string> push(std::string_view text) {
    return read([this, text](VrustBytes** out, VrustError** err) {
      return vrust_chat_parser_push(handle_.get(), text.data(), text.size(), out, err);
    });
  }

  /// Ends the answer: what `push` held back. The parser is then as new.
  Result<std::string> finish() {
    return read([this](VrustBytes** out, VrustError** err) {
      return vrust_chat_parser_finish(handle_.get(), out, err);
    });
  }

  /// The C handle, which stays this object's.
  VrustChatParser* handle() const noexcept { return handle_.get(); }

 private:
  template <typename Call>
  static Result<std::string> read(Call call) {
    VrustBytes* bytes = nullptr;
    VrustError* err = nullptr;
    const VrustStatus status = call(&bytes, &err);
    if (status < 0) return Error::adopt(status, err);
    return detail::take(bytes);
  }

  static std::string options_json(const ChatParserOptions& options) {
    std::string json = "{\"tool_format\":";
    detail::append_json(json, options.tool_format);
    json += ",\"reasoning_format\":";
    detail::append_json(json, options.reasoning_format);
    if (!options.tools_json.empty()) json += ",\"tools\":" + options.tools_json;
    if (!options.kwargs_json.empty()) json += ",\"chat_template_kwargs\":" + options.kwargs_json;
    return json + "}";
  }

  // The library writes this object without spaces, and names without escapes.
  static std::string_view field(std::string_view json, const char* name) {
    const std::string key = std::string("\"") + name + "\":";
    const size_t at = json.find(key);
    return at == std::string_view::npos ? std::string_view() : json.substr(at + key.size());
  }

  static std::string text_field(std::string_view json, const char* name) {
    const std::string_view value = field(json, name);
    if (value.empty() || value[0] != '"') return {};
    return std::string(value.substr(1, value.find('"', 1) - 1));
  }

  static bool bool_field(std::string_view json, const char* name) {
    return field(json, name).substr(0, 4) == "true";
  }

  detail::ChatParserHandle handle_;
};

}  // namespace VRUST_CPP_NAMESPACE
}  // namespace vrust

#endif
