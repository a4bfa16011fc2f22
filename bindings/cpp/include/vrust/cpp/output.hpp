/// `Output`: all that a request brought, to keep.

#ifndef VRUST_CPP_OUTPUT_HPP
#define VRUST_CPP_OUTPUT_HPP

#include <cstdint>
#include <string>
#include <vector>
#include <vrust/cpp/event.hpp>

namespace vrust {
inline namespace VRUST_CPP_NAMESPACE {

/// One of the n continuations of a request.
struct Choice {
  /// The text.
  std::string text;
  /// The token ids.
  std::vector<uint32_t> tokens;
  /// Logprobs, if asked for; `position` counts from the choice's first token.
  std::vector<Logprob> logprobs;
  /// Why it ended.
  FinishReason finish_reason = FinishReason::none;
  /// The stop string that ended it.
  std::string stop_string;
  /// The stop token that ended it.
  uint32_t stop_token = 0;
  /// Tokens generated.
  uint32_t completion_tokens = 0;
  /// Sum of the chosen tokens' logprobs, if asked for.
  float cumulative_logprob = 0;
};

/// What a request brought. Stream::collect and Engine::generate make it; a consumer of a Queue can
/// by add().
struct Output {
  /// By number.
  std::vector<Choice> choices;
  /// With echo: the prompt.
  std::string prompt_text;
  /// With echo: its token ids.
  std::vector<uint32_t> prompt_token_ids;
  /// Logprobs of the prompt, if asked for; its first token has none.
  std::vector<Logprob> prompt_logprobs;
  /// Tokens of the prompt.
  uint32_t prompt_tokens = 0;
  /// Those of them that were found in the prefix cache.
  uint32_t cached_tokens = 0;

  /// Adds one event of the request. Other kinds than delta, prompt and finished change nothing.
  void add(const Event& event) {
    if (event.kind() == EventKind::prompt) {
      prompt_text += event.text();
      append(prompt_token_ids, event.tokens());
      append(prompt_logprobs, event.logprobs());
      return;
    }
    if (event.kind() != EventKind::delta && event.kind() != EventKind::finished) return;
    if (choices.size() <= event.choice()) choices.resize(event.choice() + size_t{1});
    Choice& choice = choices[event.choice()];
    const auto before = static_cast<uint32_t>(choice.tokens.size());
    choice.text += event.text();
    append(choice.tokens, event.tokens());
    for (Logprob logprob : event.logprobs()) {
      logprob.position += before;
      choice.logprobs.push_back(logprob);
    }
    if (event.kind() == EventKind::finished) finish(choice, event);
  }

 private:
  template <typename T>
  static void append(std::vector<T>& to, Span<const T> from) {
    to.insert(to.end(), from.begin(), from.end());
  }

  void finish(Choice& choice, const Event& event) {
    choice.finish_reason = event.finish_reason();
    choice.stop_string = event.stop_string();
    choice.stop_token = event.stop_token();
    choice.completion_tokens = event.completion_tokens();
    choice.cumulative_logprob = event.value();
    prompt_tokens = event.prompt_tokens();
    cached_tokens = event.cached_tokens();
  }
};

}  // namespace VRUST_CPP_NAMESPACE
}  // namespace vrust

#endif
