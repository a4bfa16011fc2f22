/// `Request`: what to generate, by fields.

#ifndef VRUST_CPP_REQUEST_HPP
#define VRUST_CPP_REQUEST_HPP

#include <vrust/vrust.h>

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>
#include <vrust/cpp/error.hpp>
#include <vrust/cpp/options.hpp>

namespace vrust {
inline namespace VRUST_CPP_NAMESPACE {

/// A chat as a prompt.
struct Chat {
  /// An array of OpenAI messages, or an object with `messages` and optionally `tools`,
  /// `chat_template_kwargs`, `add_generation_prompt`, `continue_final_message`.
  std::string json;
};

/// One message of a chat, in plain text.
struct Message {
  /// "system", "user" or "assistant".
  std::string role;
  /// What was said.
  std::string content;
};

namespace detail {

/// Appends `text` as a JSON string. Bytes that are not UTF-8 stay: the library refuses them.
inline void append_json(std::string& json, std::string_view text) {
  constexpr char hex[] = "0123456789abcdef";
  json += '"';
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      json += '\\';
      json += c;
    } else if (byte < 0x20) {
      json += "\\u00";
      json += hex[byte >> 4];
      json += hex[byte & 15];
    } else {
      json += c;
    }
  }
  json += '"';
}

}  // namespace detail

/// A chat from its messages.
inline Chat chat(const std::vector<Message>& messages) {
  std::string json = "[";
  for (const Message& message : messages) {
    json += json.size() > 1 ? ",{\"role\":" : "{\"role\":";
    detail::append_json(json, message.role);
    json += ",\"content\":";
    detail::append_json(json, message.content);
    json += '}';
  }
  return Chat{json + "]"};
}

/// What to continue: text, token ids, or a chat.
using Prompt = std::variant<std::string, std::vector<uint32_t>, Chat>;

/// A request. Numbers that are not set have the default of the model's generation_config.json, or
/// the one given here. The engine checks all ranges: ErrorCode::invalid_argument names the field.
struct Request {
  /// What to continue.
  Prompt prompt{};
  /// 0 to 2; below 1e-5 greedy. 1.
  std::optional<float> temperature{};
  /// Above 0, up to 1. 1.
  std::optional<float> top_p{};
  /// 0 or -1: off. Off.
  std::optional<int32_t> top_k{};
  /// 0 to 1. 0.
  std::optional<float> min_p{};
  /// Above 0; divides positive and multiplies negative logits of tokens seen. 1.
  std::optional<float> repetition_penalty{};
  /// -2 to 2; subtracted per occurrence among generated tokens. 0.
  std::optional<float> frequency_penalty{};
  /// -2 to 2; subtracted once from tokens already generated. 0.
  std::optional<float> presence_penalty{};
  /// Choices to generate, 1 to 16384. 1.
  std::optional<uint32_t> n{};
  /// Most tokens to generate. 16 for text and tokens, the rest of the context for chats.
  std::optional<uint32_t> max_tokens{};
  /// End-of-text and stop tokens cannot be chosen before this many tokens. 0.
  std::optional<uint32_t> min_tokens{};
  /// Seed of the noise; choice i uses seed + i. Drawn from the engine's seed.
  std::optional<int64_t> seed{};
  /// Logprobs of each token and of this many most likely ones; -1: the whole vocabulary. Off.
  std::optional<int32_t> logprobs{};
  /// The same for each token of the prompt. Off.
  std::optional<int32_t> prompt_logprobs{};
  /// Up to 4 strings that end a choice.
  std::vector<std::string> stop{};
  /// Token ids that end a choice.
  std::vector<uint32_t> stop_token_ids{};
  /// The request ends with FinishReason::deadline this long after it was submitted. Above 0.
  std::optional<std::chrono::milliseconds> deadline{};
  /// Lower runs earlier under SchedulingPolicy::priority; else it must be 0.
  int32_t priority = 0;
  /// Only requests with an equal salt share cached blocks; up to 128 bytes.
  std::string cache_salt{};
  /// JSON object of any further field of an OpenAI body, such as logit_bias or bad_words.
  std::string extra_json{};
  /// Echoed in every event of the request, for consumers of a Queue.
  uint64_t user_data = 0;
  /// Puts the prompt's text and token ids before the first choice's output.
  bool echo = false;
  /// Goes on past end-of-text tokens.
  bool ignore_eos = false;
  /// Keeps the stop string in the output.
  bool include_stop = false;
  /// Adds the model's special tokens (bos) to a text prompt.
  bool add_special_tokens = true;
  /// Leaves special tokens out of the output's text.
  bool skip_special_tokens = true;
  /// A space between adjacent special tokens that stay in the text.
  bool spaces_between_special_tokens = true;
  /// Text beside the token ids.
  bool text = true;
};

namespace detail {

/// The C form, which borrows from a Request and from `stop_json`: both must stay in place.
struct RawRequest {
  explicit RawRequest(const Request& from) {
    vrust_request_options_init(&raw, sizeof raw);
    set_prompt(from.prompt);
    set_numbers(from);
    set_flags(from);
    if (!from.stop.empty()) {
      for (const std::string& stop : from.stop) {
        stop_json += stop_json.empty() ? '[' : ',';
        append_json(stop_json, stop);
      }
      stop_json += ']';
    }
    set_text(stop_json, raw.stop_json, raw.stop_json_len);
    set_text(from.cache_salt, raw.cache_salt, raw.cache_salt_len);
    set_text(from.extra_json, raw.extra_json, raw.extra_json_len);
    raw.num_stop_token_ids = from.stop_token_ids.size();
    if (raw.num_stop_token_ids > 0) raw.stop_token_ids = from.stop_token_ids.data();
    raw.priority = from.priority;
    raw.user_data = from.user_data;
    if (from.deadline && from.deadline->count() > 0) {
      raw.deadline_ms = static_cast<uint64_t>(from.deadline->count());
    }
  }
  RawRequest(const RawRequest&) = delete;
  RawRequest& operator=(const RawRequest&) = delete;

  /// What the C struct cannot say: to it a deadline of 0 is none.
  static Result<void> check(const Request& from) {
    if (!from.deadline || from.deadline->count() > 0) return {};
    return invalid("deadline", "must be above 0 ms, got " +
                                   std::to_string(from.deadline->count()));
  }

  VrustRequest raw;

 private:
  void set_prompt(const Prompt& prompt) noexcept {
    if (const auto* text = std::get_if<std::string>(&prompt)) {
      set_input(VRUST_INPUT_TEXT, text->data(), text->size());
    } else if (const auto* tokens = std::get_if<std::vector<uint32_t>>(&prompt)) {
      set_input(VRUST_INPUT_TOKENS, tokens->data(), tokens->size());
    } else if (const auto* chat = std::get_if<Chat>(&prompt)) {
      set_input(VRUST_INPUT_CHAT_JSON, chat->json.data(), chat->json.size());
    }
  }

  void set_input(uint32_t kind, const void* input, size_t len) noexcept {
    raw.input_kind = kind;
    raw.input = len == 0 ? nullptr : input;
    raw.input_len = len;
  }

  template <typename T>
  void set_number(uint64_t bit, T& to, const std::optional<T>& from) noexcept {
    if (!from) return;
    to = *from;
    raw.present |= bit;
  }

  void set_numbers(const Request& from) noexcept {
    set_number(VRUST_REQUEST_HAS_TEMPERATURE, raw.temperature, from.temperature);
    set_number(VRUST_REQUEST_HAS_TOP_P, raw.top_p, from.top_p);
    set_number(VRUST_REQUEST_HAS_TOP_K, raw.top_k, from.top_k);
    set_number(VRUST_REQUEST_HAS_MIN_P, raw.min_p, from.min_p);
    set_number(VRUST_REQUEST_HAS_REPETITION_PENALTY, raw.repetition_penalty,
               from.repetition_penalty);
    set_number(VRUST_REQUEST_HAS_FREQUENCY_PENALTY, raw.frequency_penalty, from.frequency_penalty);
    set_number(VRUST_REQUEST_HAS_PRESENCE_PENALTY, raw.presence_penalty, from.presence_penalty);
    set_number(VRUST_REQUEST_HAS_N, raw.n, from.n);
    set_number(VRUST_REQUEST_HAS_MAX_TOKENS, raw.max_tokens, from.max_tokens);
    set_number(VRUST_REQUEST_HAS_MIN_TOKENS, raw.min_tokens, from.min_tokens);
    set_number(VRUST_REQUEST_HAS_SEED, raw.seed, from.seed);
    set_number(VRUST_REQUEST_HAS_LOGPROBS, raw.logprobs, from.logprobs);
    set_number(VRUST_REQUEST_HAS_PROMPT_LOGPROBS, raw.prompt_logprobs, from.prompt_logprobs);
  }

  void set_flags(const Request& from) noexcept {
    if (from.echo) raw.flags |= VRUST_REQUEST_ECHO;
    if (from.ignore_eos) raw.flags |= VRUST_REQUEST_IGNORE_EOS;
    if (from.include_stop) raw.flags |= VRUST_REQUEST_INCLUDE_STOP;
    if (!from.add_special_tokens) raw.flags |= VRUST_REQUEST_NO_SPECIAL_TOKENS;
    if (!from.skip_special_tokens) raw.flags |= VRUST_REQUEST_KEEP_SPECIAL_TOKENS;
    if (!from.spaces_between_special_tokens) raw.flags |= VRUST_REQUEST_NO_SPECIAL_SPACES;
    if (!from.text) raw.flags |= VRUST_REQUEST_NO_TEXT;
  }

  std::string stop_json;
};

}  // namespace detail
}  // namespace VRUST_CPP_NAMESPACE
}  // namespace vrust

#endif
