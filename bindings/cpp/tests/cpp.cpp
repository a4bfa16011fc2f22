// What only the C++ binding has: exceptions and their absence, ranges, queues in event loops, the
// log callback, moves, several translation units. Built with and without exceptions.
//   cpp [MODEL_FOLDER [TEST...]]

#include <poll.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <iterator>
#include <mutex>
#include <string>
#include <type_traits>
#include <vector>

#include "harness.hpp"
#include "units.hpp"

using namespace harness;

namespace {

const vrust::Engine& engine() {
  static const vrust::Engine engine = ready_engine();
  return engine;
}

template <typename T>
constexpr bool is_move_only = !std::is_copy_constructible_v<T> && !std::is_copy_assignable_v<T> &&
                              std::is_nothrow_move_constructible_v<T> &&
                              std::is_nothrow_move_assignable_v<T>;

static_assert(is_move_only<vrust::Engine> && is_move_only<vrust::Queue>);
static_assert(is_move_only<vrust::Stream> && is_move_only<vrust::Tokenizer>);
static_assert(is_move_only<vrust::ChatParser>);
static_assert(std::is_nothrow_copy_constructible_v<vrust::Cancel>);
static_assert(std::is_base_of_v<std::exception, vrust::Error>);

void results() {
  vrust::Result<int> good = 3;
  CHECK(good && *good == 3 && good.error().code() == vrust::ErrorCode::ok);
  vrust::Result<int> bad = vrust::Error(vrust::ErrorCode::queue_full, "full", "{\"limit\":1}");
  CHECK(!bad && !bad.has_value() && bad.error().is_retryable());
  CHECK(bad.error().detail_json() == "{\"limit\":1}" && std::string(bad.error().what()) == "full");
  CHECK(std::move(bad).value_or(5) == 5 && std::move(good).value_or(5) == 3);
  const vrust::Result<void> done;
  const vrust::Result<void> failed = vrust::Error(vrust::ErrorCode::io, "disk");
  CHECK(done && !failed && std::string(vrust::name(failed.error().code())) == "IO");
  CHECK(std::string(vrust::name(static_cast<vrust::ErrorCode>(-999))) == "UNKNOWN");
}

// A request that fails while its stream is read: by an exception, or by the end of the loop.
void failing_stream() {
  std::string words;
  for (int i = 0; i < 20000; i++) words += "long ";
  vrust::Stream stream = GET(engine().submit(greedy(words, 4)));
  int deltas = 0;
  bool thrown = false;
#ifndef VRUST_NO_EXCEPTIONS
  try {
    for (auto& delta : stream) deltas += delta.choice() == 0;
  } catch (const vrust::Error& error) {
    thrown = error.code() == vrust::ErrorCode::context_length && !error.message().empty();
  }
  CHECK(thrown);
  thrown = false;
  try {
    vrust::EngineOptions options;
    options.model = "no/such/folder";
    vrust::Engine::create(options).value();
  } catch (const std::exception& error) {
    thrown = std::string(error.what()).find("no/such/folder") != std::string::npos;
  }
  CHECK(thrown);
  vrust::Result<int> good = 3;
  CHECK(good.value() == 3 && vrust::Result<int>(4).value() == 4);
  vrust::Result<void>().value();
#else
  for (auto& delta : stream) deltas += delta.choice() == 0;
  CHECK(!thrown);
#endif
  CHECK(deltas == 0 && stream.is_done());
  CHECK(stream.error().code() == vrust::ErrorCode::context_length);
}

void moves() {
  vrust::Engine first = ready_engine();
  vrust::Stream stream = GET(first.submit(endless()));
  vrust::Engine second = std::move(first);
  CHECK(GET(stream.next()) != nullptr);
  CHECK_ERROR(invalid_argument, first.state());
  CHECK(GET(second.state()) == vrust::EngineState::ready);
  vrust::Queue queue = GET(second.create_queue());
  vrust::Queue other = std::move(queue);
  CHECK_ERROR(invalid_argument, queue.poll(0ms));
  CHECK(GET(other.poll(0ms)).state == vrust::PollState::timeout);
  const vrust::Tokenizer tokenizer = GET(second.tokenizer());

  // Assigned over: that engine ends, and what came from it outlives it.
  second = ready_engine();
  CHECK(GET(stream.collect()).choices[0].finish_reason == vrust::FinishReason::abort);
  CHECK(GET(other.poll()).state == vrust::PollState::closed);
  CHECK(!GET(tokenizer.encode("still")).empty());
  CHECK(GET(second.generate(greedy("Hello", 2))).choices.size() == 1);
}

void algorithms() {
  vrust::Stream stream = GET(engine().submit(greedy("Once upon a time", 24)));
  std::string text;
  std::for_each(stream.begin(), stream.end(), [&](const vrust::Delta& d) { text += d.text(); });
  CHECK(text == GET(engine().generate(greedy("Once upon a time", 24))).choices[0].text);
  CHECK(std::distance(stream.begin(), stream.end()) == 0);
}

// Larger than a stream's first room: everything waits, with all of its logprobs.
void large_events() {
  vrust::Request request = greedy("Once upon a time", 100);
  request.ignore_eos = true;
  request.logprobs = 20;
  vrust::Stream stream = GET(engine().submit(request));
  check_idle(engine());
  const vrust::Output output = GET(stream.collect());
  CHECK(output.choices[0].logprobs.size() == 100 * 21);
  CHECK(output.choices[0].logprobs.back().position == 99);
}

bool is_readable(int fd, int timeout_ms) {
  pollfd waiting = {fd, POLLIN, 0};
  return ::poll(&waiting, 1, timeout_ms) == 1;
}

void event_loop() {
  vrust::Queue queue = GET(engine().create_queue());
  const int fd = GET(queue.fd());
  CHECK(!is_readable(fd, 0));
  vrust::Request request = greedy("Hello", 16);
  request.user_data = 42;
  const uint64_t id = GET(engine().submit(request, queue));
  vrust::Output output;
  bool ended = false;
  while (!ended) {
    CHECK(is_readable(fd, 20000));
    vrust::Batch batch;
    do {
      batch = GET(queue.poll(0ms));
      for (const vrust::Event& event : batch.events) {
        CHECK(event.request_id() == id && event.user_data() == 42 && !ended);
        CHECK(event.raw().time_ns != 0);
        output.add(event);
        ended = event.is_last();
      }
    } while (batch.state == vrust::PollState::more);
  }
  CHECK(output.choices[0].text == GET(engine().generate(greedy("Hello", 16))).choices[0].text);

  GET(queue.wake());
  CHECK(GET(queue.poll()).state == vrust::PollState::timeout);
  const uint64_t aborted = GET(engine().submit(endless(), queue));
  GET(engine().abort(aborted));
  const uint64_t by_json = GET(engine().submit_json(
      R"({"prompt":"Once","max_tokens":1900,"ignore_eos":true})", queue, 7));
  engine().canceller(by_json)();
  for (int left = 2; left > 0;) {
    for (const vrust::Event& event : GET(queue.poll()).events) {
      CHECK(event.user_data() == (event.request_id() == by_json ? 7 : 0));
      left -= event.is_last();
    }
  }
  CHECK(GET(engine().submit(endless(), queue)) != 0);
  CHECK(GET(engine().submit(endless(), queue)) != 0);
  GET(engine().abort_all());
  check_idle(engine());
  queue.close();
  queue.close();
  CHECK(GET(queue.poll()).state == vrust::PollState::closed);

  vrust::Stream stream = GET(engine().submit(greedy("Hello", 4)));
  CHECK(is_readable(GET(stream.fd()), 20000));
  CHECK(GET(stream.next(0ms)) != nullptr);
}

void loading() {
  const vrust::Engine engine = GET(vrust::Engine::create(options()));
  vrust::Queue queue = GET(engine.default_queue());
  vrust::Stream early = GET(engine.submit(greedy("The capital of France is", 8)));
  float done = 0;
  while (done < 1) {
    for (const vrust::Event& event : GET(queue.poll()).events) {
      CHECK(event.kind() == vrust::EventKind::load && event.value() >= done);
      done = event.value();
    }
  }
  CHECK(GET(engine.wait_ready(0ms)));
  const vrust::Choice choice = GET(early.collect()).choices[0];
  CHECK(choice.text.find("Paris") != std::string::npos);
  check_idle(engine);
  CHECK(GET(engine.stats()).generation_tokens == choice.completion_tokens);
  CHECK(GET(engine.info_json()).find("\"max_model_len\":2048") != std::string::npos);
  CHECK(GET(engine.prometheus()).find("vllm:num_requests_running") != std::string::npos);

  vrust::Stream last = GET(engine.submit(endless()));
  CHECK(!GET(engine.shutdown(vrust::ShutdownMode::drain, 1ms)));
  CHECK_ERROR(shutting_down, engine.submit(greedy("Hello", 4)));
  CHECK(GET(engine.shutdown(vrust::ShutdownMode::abort)));
  CHECK(GET(engine.state()) == vrust::EngineState::closed);
  CHECK(GET(last.collect()).choices[0].finish_reason == vrust::FinishReason::abort);
}

// A bug in the engine's thread ends its requests with an error, and the program goes on.
void failed_engine() {
  vrust::EngineOptions failing = options();
  failing.extra_json = R"({"debug":{"panic_at_step":3}})";
  const vrust::Engine engine = GET(vrust::Engine::create(failing));
  vrust::Queue queue = GET(engine.default_queue());
  vrust::Stream stream = GET(engine.submit(endless()));
  CHECK(!stream.collect() && stream.is_done());
  CHECK(GET(engine.state()) == vrust::EngineState::failed);
  bool told = false;
  while (!told) {
    for (const vrust::Event& event : GET(queue.poll(20s)).events) {
      if (event.kind() != vrust::EventKind::engine_failed) continue;
      told = !event.error().message().empty() && event.text().empty();
    }
  }
}

// Each number out of its range: the engine names it, so it arrived in its place.
void every_number() {
  using Set = void (*)(vrust::Request&);
  const struct {
    const char* field;
    Set set;
  } cases[] = {
      {"temperature", [](vrust::Request& r) { r.temperature = -1.0f; }},
      {"top_p", [](vrust::Request& r) { r.top_p = 2.0f; }},
      {"top_k", [](vrust::Request& r) { r.top_k = -7; }},
      {"min_p", [](vrust::Request& r) { r.min_p = 2.0f; }},
      {"repetition_penalty", [](vrust::Request& r) { r.repetition_penalty = -1.0f; }},
      {"frequency_penalty", [](vrust::Request& r) { r.frequency_penalty = 9.0f; }},
      {"presence_penalty", [](vrust::Request& r) { r.presence_penalty = 9.0f; }},
      {"n", [](vrust::Request& r) { r.n = 0; }},
      {"max_tokens", [](vrust::Request& r) { r.max_tokens = 0; }},
      {"min_tokens", [](vrust::Request& r) { r.min_tokens = 99; }},
      {"logprobs", [](vrust::Request& r) { r.logprobs = 1000; }},
      {"prompt_logprobs", [](vrust::Request& r) { r.prompt_logprobs = 1000; }},
      {"stop", [](vrust::Request& r) { r.stop = {"a", "b", "c", "d", "e"}; }},
      {"stop_token_ids", [](vrust::Request& r) { r.stop_token_ids = {4000000000}; }},
      {"priority", [](vrust::Request& r) { r.priority = 3; }},
      {"cache_salt", [](vrust::Request& r) { r.cache_salt = std::string(200, 'x'); }},
  };
  for (const auto& one : cases) {
    vrust::Request request = greedy("Hello", 4);
    one.set(request);
    const vrust::Result<vrust::Stream> stream = engine().submit(request);
    if (stream || stream.error().detail_json().find(one.field) == std::string::npos) {
      fail(__FILE__, __LINE__, std::string(one.field) + ": " + stream.error().message());
    }
  }

  // Every seed is fine: it shows in what comes.
  vrust::Request seeded = greedy("Once upon a time", 40);
  seeded.temperature = 1.0f;
  seeded.seed = 7;
  const std::string text = GET(engine().generate(seeded)).choices[0].text;
  CHECK(GET(engine().generate(seeded)).choices[0].text == text);
  seeded.seed = 8;
  CHECK(GET(engine().generate(seeded)).choices[0].text != text);
}

void every_flag() {
  const std::string prompt = "The capital of France is";
  vrust::Request request = greedy(prompt, 30);
  request.stop = {"aris"};
  request.include_stop = true;
  const std::string text = GET(engine().generate(request)).choices[0].text;
  CHECK(text.size() > 4 && text.compare(text.size() - 4, 4, "aris") == 0);

  request = greedy(prompt, 8);
  request.ignore_eos = true;
  request.text = false;
  vrust::Choice choice = GET(engine().generate(request)).choices[0];
  CHECK(choice.text.empty() && choice.tokens.size() == 8);

  request.stop_token_ids = {choice.tokens[2]};
  choice = GET(engine().generate(request)).choices[0];
  CHECK(choice.finish_reason == vrust::FinishReason::stop_token);
  CHECK(choice.stop_token == request.stop_token_ids[0]);

  request = greedy(prompt, 1);
  const uint32_t with_bos = GET(engine().generate(request)).prompt_tokens;
  request.add_special_tokens = false;
  const vrust::Tokenizer tokenizer = GET(engine().tokenizer());
  CHECK(GET(tokenizer.encode(prompt)).size() == with_bos);
  CHECK(GET(tokenizer.encode(prompt, false)).size() ==
        GET(engine().generate(request)).prompt_tokens);

  // Past the end of a chat's answer, the special tokens show if they are to stay.
  request = vrust::Request{};
  request.prompt = vrust::chat({{"user", "What is the capital of France?"}});
  request.temperature = 0.0f;
  request.max_tokens = 60;
  const vrust::Choice ended = GET(engine().generate(request)).choices[0];
  CHECK(ended.completion_tokens < 60);
  request.ignore_eos = true;
  const vrust::Choice without = GET(engine().generate(request)).choices[0];
  CHECK(without.completion_tokens == 60);
  request.skip_special_tokens = false;
  const std::string spaced = GET(engine().generate(request)).choices[0].text;
  CHECK(spaced.size() > without.text.size());
}

void tokenizers() {
  const vrust::Tokenizer tokenizer = GET(vrust::Tokenizer::open(model()));
  const std::string text = "Hello, \xc3\xa9t\xc3\xa9!\n";
  const std::vector<uint32_t> ids = GET(tokenizer.encode(text, false));
  CHECK(GET(tokenizer.decode(ids)).find("\xc3\xa9t\xc3\xa9!") != std::string::npos);
  CHECK(GET(tokenizer.encode("")).size() <= 1 && GET(tokenizer.encode("", false)).empty());
  CHECK(GET(tokenizer.decode({})).empty());
  CHECK(!GET(tokenizer.token_bytes(ids[0])).empty());
  CHECK_ERROR(not_found, tokenizer.token_bytes(4000000));

  // Longer than the first room for the text.
  size_t longest = 0;
  uint32_t longest_id = 0;
  for (uint32_t id = 0; id < 1700; id++) {
    const size_t size = GET(tokenizer.token_bytes(id)).size();
    if (size > longest) longest = size, longest_id = id;
  }
  const std::vector<uint32_t> many(1000, longest_id);
  CHECK(longest > 8 && GET(tokenizer.decode(many, false)).size() > many.size() * 8 + 16);

  const vrust::Chat quoted = vrust::chat({{"user", "say \"\\\"\n\t\x01 now"}});
  CHECK(GET(tokenizer.render(quoted)).find("say \"\\\"\n\t\x01 now") != std::string::npos);
  vrust::RenderOptions open;
  open.generation_prompt = false;
  const vrust::Chat chat = vrust::chat({{"user", "Hi"}, {"assistant", "Well"}});
  const std::string closed = GET(tokenizer.render(chat, open));
  open.continue_final = true;
  const std::string unfinished = GET(tokenizer.render(chat, open));
  CHECK(unfinished.size() < closed.size());
  CHECK(unfinished.compare(unfinished.size() - 4, 4, "Well") == 0);
  CHECK_ERROR(invalid_argument, tokenizer.render(vrust::chat({})));
  CHECK_ERROR(invalid_argument, tokenizer.render(vrust::Chat{"{"}));

  vrust::EngineOptions refusing = options();
  refusing.chat_template =
      "{{ tools[0].name }}{{ mood }}{% if not mood %}{{ raise_exception('no') }}{% endif %}";
  const vrust::Engine engine = GET(vrust::Engine::create(refusing));
  CHECK(GET(engine.wait_ready()));
  const vrust::Tokenizer own = GET(engine.tokenizer());
  CHECK_ERROR(chat_template, own.render(chat));
  vrust::RenderOptions variables;
  variables.tools_json = R"([{"name":"clock"}])";
  variables.kwargs_json = R"({"mood":"merry"})";
  CHECK(GET(own.render(chat, variables)) == "clockmerry");
}

void logging() {
  std::mutex lock;
  std::vector<std::string> records;
  std::atomic<bool> refused{false};
  const vrust::LogCallback keep = [&](vrust::LogLevel level, std::string_view target,
                                      std::string_view message) {
    CHECK(level >= vrust::LogLevel::error && level <= vrust::LogLevel::debug);
    CHECK(!target.empty() && !message.empty());
    if (!vrust::set_log(vrust::LogLevel::off)) refused = true;
    {
      const std::lock_guard<std::mutex> guard(lock);
      records.emplace_back(message);
    }
#ifndef VRUST_NO_EXCEPTIONS
    throw 1;
#endif
  };
  GET(vrust::set_log(vrust::LogLevel::debug, keep));
  GET(ready_engine().generate(greedy("Hello", 2)));
  GET(vrust::set_log(vrust::LogLevel::off));
  // Nothing is inside the callback any more.
  const size_t count = records.size();
  CHECK(count > 0 && refused);
  GET(ready_engine().generate(greedy("Hello", 2)));
  CHECK(records.size() == count);

  // Replaced and removed while others log.
  std::atomic<bool> stop{false};
  std::thread busy([&] {
    while (!stop) ready_engine();
  });
  std::atomic<int> seen{0};
  for (int i = 0; i < 30 || seen == 0; i++) {
    auto alive = std::make_shared<int>(i);
    GET(vrust::set_log(vrust::LogLevel::trace, [alive, &seen](auto, auto, auto) { seen++; }));
    CHECK(alive.use_count() == 2);
    std::this_thread::sleep_for(1ms);
    GET(vrust::set_log(vrust::LogLevel::off));
    CHECK(alive.use_count() == 1);
  }
  stop = true;
  busy.join();
}

// The header in several translation units, twice in each, with and without exceptions.
void translation_units() {
  CHECK(other_version() == vrust::version());
  CHECK(plain_version() == vrust::version());
  vrust::Result<int> (*const here)() = &shared_function;
  CHECK(other_function() == here && *here() == 5);
  CHECK(plain_failure(model()) == static_cast<int>(vrust::ErrorCode::invalid_argument));
}

}  // namespace

int main(int argc, char** argv) {
  const Test tests[] = {
      {"results", results},
      {"failing_stream", failing_stream},
      {"moves", moves},
      {"algorithms", algorithms},
      {"large_events", large_events},
      {"event_loop", event_loop},
      {"loading", loading},
      {"failed_engine", failed_engine},
      {"every_number", every_number},
      {"every_flag", every_flag},
      {"tokenizers", tokenizers},
      {"logging", logging},
      {"translation_units", translation_units},
  };
  return run(tests, argc, argv);
}
