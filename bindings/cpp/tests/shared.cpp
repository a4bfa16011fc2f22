// The tests that every binding passes, on the demo model. They use no exceptions, and are built
// with and without them.
//   shared [MODEL_FOLDER [TEST...]]

#include <algorithm>
#include <cmath>
#include <string>
#include <thread>
#include <vector>

#include "harness.hpp"

using namespace harness;

namespace {

const vrust::Engine& engine() {
  static const vrust::Engine engine = ready_engine();
  return engine;
}

std::string text_of(const vrust::Request& request) {
  const vrust::Output output = GET(engine().generate(request));
  CHECK(output.choices.size() == 1);
  CHECK(output.choices[0].finish_reason != vrust::FinishReason::none);
  return output.choices[0].text;
}

void version() {
  CHECK(std::string(vrust::version()) == vrust::header_version);
  CHECK(vrust::abi_version() == VRUST_ABI_VERSION);
  const std::string info = vrust::build_info_json();
  CHECK(info.find(std::string("\"") + vrust::version() + "\"") != std::string::npos);
}

void bad_parameters() {
  vrust::Request request = greedy("Hello", 4);
  request.top_p = 1.5f;
  const vrust::Error error = CHECK_ERROR(invalid_argument, engine().submit(request));
  CHECK(error.message().find("1.5") != std::string::npos);
  CHECK(error.detail_json().find("\"top_p\"") != std::string::npos);
  CHECK(!error.is_retryable());

  request = greedy("Hello", 4);
  request.extra_json = R"({"no_such_field": 1})";
  CHECK_ERROR(invalid_argument, engine().submit(request));
  request.extra_json = R"({"use_beam_search": true})";
  CHECK_ERROR(unsupported, engine().submit(request));
  CHECK_ERROR(invalid_argument, engine().submit_json("{"));
  request.extra_json = "";
  request.prompt = std::vector<uint32_t>{4000000};
  CHECK_ERROR(invalid_argument, engine().submit(request));
  CHECK_ERROR(not_found, engine().abort(uint64_t{1} << 60));

  request = greedy("Hello", 4);
  request.deadline = 0ms;
  CHECK_ERROR(invalid_argument, engine().submit(request));
  request.deadline = -5ms;
  CHECK_ERROR(invalid_argument, engine().submit(request));

  vrust::EngineOptions options;
  CHECK_ERROR(invalid_argument, vrust::Engine::create(options));
  options.model = "no/such/folder";
  CHECK_ERROR(not_found, vrust::Engine::create(options));
  options.model = model();
  options.block_size = 7;
  CHECK_ERROR(invalid_argument, vrust::Engine::create(options));
  options.block_size = {};
  options.dtype = static_cast<vrust::Dtype>(77);
  CHECK_ERROR(invalid_argument, vrust::Engine::create(options));
  CHECK_ERROR(tokenizer, vrust::Tokenizer::open("no/such/folder"));

  // Found only once the text is tokenized: the stream's error, and it stays.
  std::string words;
  for (int i = 0; i < 20000; i++) words += "long ";
  vrust::Stream stream = GET(engine().submit(greedy(words, 4)));
  CHECK_ERROR(context_length, stream.collect());
  CHECK_ERROR(context_length, stream.next());
  CHECK(stream.is_done() && stream.error().code() == vrust::ErrorCode::context_length);
}

void generate() {
  const vrust::Request request = greedy("The capital of France is", 8);
  const vrust::Output first = GET(engine().generate(request));
  const vrust::Output again = GET(engine().generate(request));
  CHECK(first.choices[0].text.find("Paris") != std::string::npos);
  CHECK(first.choices[0].tokens == again.choices[0].tokens);
  CHECK(first.choices[0].tokens.size() == first.choices[0].completion_tokens);

  const vrust::Tokenizer tokenizer = GET(engine().tokenizer());
  vrust::Request by_ids = request;
  by_ids.prompt = GET(tokenizer.encode("The capital of France is"));
  CHECK(first.prompt_tokens == std::get<std::vector<uint32_t>>(by_ids.prompt).size());
  CHECK(text_of(by_ids) == first.choices[0].text);

  vrust::Request several = greedy("Once upon a time", 12);
  several.temperature = 1.0f;
  several.n = 3;
  several.seed = 7;
  several.echo = true;
  const vrust::Output output = GET(engine().generate(several));
  CHECK(output.choices.size() == 3 && output.prompt_text == "Once upon a time");
  CHECK(output.choices[0].text != output.choices[1].text);

  vrust::Request stopped = greedy("The capital of France is", 30);
  stopped.stop = {"\"\n", "aris"};
  const vrust::Choice choice = GET(engine().generate(stopped)).choices[0];
  CHECK(choice.finish_reason == vrust::FinishReason::stop_string && choice.stop_string == "aris");
  CHECK(choice.text.find("aris") == std::string::npos);

  const std::string body =
      R"({"prompt":"The capital of France is","max_tokens":8,"temperature":0})";
  vrust::Stream by_json = GET(engine().submit_json(body));
  CHECK(GET(by_json.collect()).choices[0].text == first.choices[0].text);
}

void stream() {
  const vrust::Request request = greedy("Once upon a time", 24);
  const vrust::Output whole = GET(engine().generate(request));
  vrust::Stream stream = GET(engine().submit(request));
  CHECK(stream.id() != 0);
  std::string text;
  std::vector<uint32_t> tokens;
  vrust::FinishReason reason = vrust::FinishReason::none;
  for (auto& delta : stream) {
    CHECK(delta.request_id() == stream.id());
    CHECK(reason == vrust::FinishReason::none);
    text += delta.text();
    tokens.insert(tokens.end(), delta.tokens().begin(), delta.tokens().end());
    reason = delta.finish_reason();
  }
  CHECK(text == whole.choices[0].text && tokens == whole.choices[0].tokens);
  CHECK(reason == whole.choices[0].finish_reason);
  CHECK(stream.is_done() && stream.error().code() == vrust::ErrorCode::ok);
  CHECK(GET(stream.next()) == nullptr && stream.begin() == stream.end());

  // One that is moved in the middle goes on; so does a loop after a break.
  vrust::Stream first = GET(engine().submit(request));
  std::string parts;
  for (auto& delta : first) {
    parts += delta.text();
    break;
  }
  vrust::Stream second = std::move(first);
  for (auto& delta : second) parts += delta.text();
  CHECK(parts == text);
}

void chat() {
  vrust::Request request;
  request.prompt = vrust::chat({{"user", "What is the capital of France?"}});
  request.temperature = 0.0f;
  request.max_tokens = 40;
  const vrust::Output output = GET(engine().generate(request));
  CHECK(output.choices[0].text.find("Paris") != std::string::npos);
  CHECK(std::string(vrust::name(output.choices[0].finish_reason)) == "stop");

  const std::string body = R"({"messages":[{"role":"user","content":)"
                           R"("What is the capital of France?"}],"max_tokens":40,"temperature":0})";
  vrust::Stream by_json = GET(engine().submit_json(body));
  CHECK(GET(by_json.collect()).choices[0].text == output.choices[0].text);

  // The template and the tokenizer by hand give the same prompt.
  const vrust::Tokenizer tokenizer = GET(vrust::Tokenizer::open(model()));
  const std::string text = GET(tokenizer.render(std::get<vrust::Chat>(request.prompt)));
  CHECK(text.find("What is the capital of France?") != std::string::npos);
  CHECK(GET(tokenizer.encode(text, false)).size() == output.prompt_tokens);
}

void logprobs() {
  vrust::Request request = greedy("The capital of France is", 4);
  request.logprobs = 3;
  request.prompt_logprobs = 1;
  const vrust::Output output = GET(engine().generate(request));
  const vrust::Choice& choice = output.choices[0];
  float sum = 0;
  size_t places = 0;
  for (size_t i = 0; i < choice.logprobs.size(); i++) {
    const vrust::Logprob& logprob = choice.logprobs[i];
    if (i > 0 && choice.logprobs[i - 1].position == logprob.position) continue;
    // The first record of a place: the chosen token, here always the most likely one.
    CHECK(logprob.position == places && logprob.token_id == choice.tokens[places]);
    CHECK(logprob.rank == 1 && logprob.logprob <= 0);
    sum += logprob.logprob;
    places++;
  }
  CHECK(places == 4 && choice.logprobs.size() == 4 * 4);
  CHECK(std::fabs(sum - choice.cumulative_logprob) < 1e-4f);
  CHECK(!output.prompt_logprobs.empty() && output.prompt_logprobs[0].position == 1);
  CHECK(output.prompt_logprobs.back().position == output.prompt_tokens - 1);
}

void cancel() {
  vrust::Stream stream = GET(engine().submit(endless()));
  CHECK(GET(stream.next()) != nullptr);
  stream.cancel();
  CHECK(GET(stream.collect()).choices[0].finish_reason == vrust::FinishReason::abort);

  // From another thread, by a copy that outlives the stream.
  vrust::Cancel canceller;
  canceller();
  {
    vrust::Stream other = GET(engine().submit(endless()));
    canceller = other.canceller();
    std::thread thread([canceller] {
      std::this_thread::sleep_for(20ms);
      canceller();
    });
    CHECK(GET(other.collect()).choices[0].finish_reason == vrust::FinishReason::abort);
    thread.join();
  }
  canceller();

  // A dropped stream, one that is assigned over, and one left in the middle of a loop.
  { const vrust::Stream dropped = GET(engine().submit(endless())); }
  vrust::Stream last = GET(engine().submit(endless()));
  last = GET(engine().submit(greedy("Once", 4)));
  CHECK(GET(last.collect()).choices[0].finish_reason == vrust::FinishReason::length);
  {
    vrust::Stream left = GET(engine().submit(endless()));
    for (auto& delta : left) {
      CHECK(!delta.is_last());
      break;
    }
  }
  check_idle(engine());
}

void deadline() {
  vrust::Request request = endless("Once upon");
  request.deadline = 20ms;
  const vrust::Output output = GET(engine().generate(request));
  CHECK(output.choices[0].finish_reason == vrust::FinishReason::deadline);

  // A wait may have a limit of its own, which ends nothing.
  vrust::Stream stream = GET(engine().submit(endless()));
  CHECK(GET(stream.next()) != nullptr);
  while (GET(stream.next(0ms)) != nullptr) CHECK(!stream.is_done());
  CHECK(!stream.is_done() && GET(stream.next()) != nullptr);
}

void many_at_once() {
  const auto prompt = [](size_t i) { return "The number " + std::to_string(i); };
  std::vector<std::string> alone;
  for (size_t i = 0; i < 5; i++) alone.push_back(text_of(greedy(prompt(i), 12)));

  // Each with its own queue, read by several threads.
  std::vector<vrust::Stream> streams;
  for (size_t i = 0; i < 100; i++) {
    streams.push_back(GET(engine().submit(greedy(prompt(i), 12))));
  }
  std::vector<std::string> texts(streams.size());
  std::vector<std::thread> threads;
  for (size_t t = 0; t < 4; t++) {
    threads.emplace_back([&, t] {
      for (size_t i = t; i < streams.size(); i += 4) {
        texts[i] = GET(streams[i].collect()).choices[0].text;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (size_t i = 0; i < alone.size(); i++) CHECK(texts[i] == alone[i]);

  // All on one queue.
  vrust::Queue queue = GET(engine().create_queue());
  std::vector<vrust::Output> outputs(texts.size());
  for (size_t i = 0; i < outputs.size(); i++) {
    vrust::Request request = greedy(prompt(i), 12);
    request.user_data = i;
    CHECK(GET(engine().submit(request, queue)) != 0);
  }
  for (size_t ended = 0; ended < outputs.size();) {
    for (const vrust::Event& event : GET(queue.poll()).events) {
      outputs[event.user_data()].add(event);
      ended += event.is_last();
    }
  }
  for (size_t i = 0; i < texts.size(); i++) CHECK(outputs[i].choices[0].text == texts[i]);
}

void slow_consumer() {
  vrust::Request request = greedy("Once upon a time", 64);
  request.ignore_eos = true;
  vrust::Stream slow = GET(engine().submit(request));
  const std::string fast = text_of(request);
  check_idle(engine());
  std::string text;
  size_t deltas = 0;
  for (auto& delta : slow) {
    text += delta.text();
    deltas++;
  }
  // What waited has become one delta and the end.
  CHECK(text == fast && deltas <= 3);

  // A limit on what may wait stops the request, not the engine; reading lets it go on.
  vrust::QueueOptions little;
  little.max_undrained_bytes = 1;
  vrust::Stream held = GET(engine().submit(request, little));
  CHECK(text_of(request) == fast);
  CHECK(GET(engine().stats()).live_requests == 1);
  CHECK(GET(held.collect()).choices[0].text == fast);
}

void close_while_running() {
  const vrust::Engine closing = ready_engine();
  std::vector<vrust::Stream> streams;
  for (int i = 0; i < 8; i++) streams.push_back(GET(closing.submit(endless())));
  CHECK(GET(streams[0].next()) != nullptr);
  std::thread reader([&] {
    CHECK(GET(streams[1].collect()).choices[0].finish_reason == vrust::FinishReason::abort);
  });
  vrust::Queue queue = GET(closing.default_queue());
  std::thread poller([&] {
    while (GET(queue.poll()).state != vrust::PollState::closed) continue;
  });
  closing.close();
  closing.close();
  reader.join();
  poller.join();
  for (size_t i = 2; i < streams.size(); i++) {
    CHECK(GET(streams[i].collect()).choices[0].finish_reason == vrust::FinishReason::abort);
  }
  CHECK_ERROR(invalid_argument, closing.submit(endless()));
  CHECK_ERROR(invalid_argument, closing.stats());
  streams[2].cancel();
}

// Sanitizers keep what was freed, and look for leaks themselves.
#ifdef VRUST_TEST_SANITIZED
constexpr bool sanitized = true;
#else
constexpr bool sanitized = false;
#endif

void check_growth(const char* what, long before, long most_kib) {
  const long growth = process_figure("VmRSS") - before;
  if (growth > most_kib && !sanitized) {
    fail(__FILE__, __LINE__, std::string(what) + " leak: " + std::to_string(growth) + " KiB");
  }
}

// Deltas put together. The texts stay as JSON has them.
struct Answer {
  std::string reasoning, content, name, arguments;

  void add(const std::string& deltas) {
    CHECK(deltas.size() >= 2 && deltas.front() == '[' && deltas.back() == ']');
    for (size_t at = 0; (at = deltas.find("\":\"", at)) != std::string::npos;) {
      const size_t key = deltas.rfind('"', at - 1) + 1;
      const std::string field = deltas.substr(key, at - key);
      at += 3;
      const size_t begin = at;
      while (deltas[at] != '"') at += deltas[at] == '\\' ? 2 : 1;
      const std::string text = deltas.substr(begin, at - begin);
      if (field == "reasoning") reasoning += text;
      if (field == "content") content += text;
      if (field == "name") name += text;
      if (field == "arguments") arguments += text;
    }
  }
};

vrust::ChatParserOptions parser_options() {
  vrust::ChatParserOptions options;
  options.tool_format = "hermes";
  options.reasoning_format = "think";
  options.tools_json = R"([{"type":"function","function":{"name":"now"}}])";
  return options;
}

// The answer in pieces of `size` characters, and what they make known.
Answer parse(vrust::ChatParser& parser, const std::string& text, size_t size) {
  Answer answer;
  for (size_t at = 0; at < text.size();) {
    size_t end = std::min(at + size, text.size());
    while (end < text.size() && (text[end] & 0xc0) == 0x80) end++;
    answer.add(GET(parser.push(text.substr(at, end - at))));
    at = end;
  }
  answer.add(GET(parser.finish()));
  return answer;
}

void chat_parser() {
  const std::string text =
      "<think>\nHm.\n</think>\n\nHi <tool_call>{\"name\": \"now\", \"arguments\": "
      "{\"a\": \"\xc3\xa9t\xc3\xa9\"}}</tool_call>";
  vrust::ChatParser parser = GET(engine().chat_parser(parser_options()));
  const vrust::ChatParserInfo info = GET(parser.info());
  CHECK(info.tool_format == "hermes" && info.reasoning_format == "think");
  CHECK(!info.starts_in_reasoning && !info.keep_special_tokens);
  for (const size_t size : {text.size(), size_t{1}, size_t{2}, size_t{3}, size_t{7}}) {
    const Answer answer = parse(parser, text, size); // As new after each end.
    CHECK(answer.reasoning == "Hm." && answer.content == "Hi" && answer.name == "now");
    CHECK(answer.arguments == "{\\\"a\\\": \\\"\xc3\xa9t\xc3\xa9\\\"}");
  }
  CHECK(GET(parser.push("a <tool_ca")) == R"([{"content":"a"}])");
  CHECK(GET(parser.push("")) == "[]");
  CHECK(GET(parser.finish()) == R"([{"content":" <tool_ca"}])");
  CHECK(CHECK_ERROR(invalid_argument, parser.push("a\xff")).message().find("UTF-8") !=
        std::string::npos);

  // Without tools, or a format in the template, the text stays as it is.
  vrust::ChatParser plain = GET(engine().chat_parser());
  CHECK(GET(plain.info()).tool_format.empty() && GET(plain.info()).reasoning_format.empty());
  CHECK(parse(plain, "<tool_call> x", 4).content == "<tool_call> x");

  vrust::ChatParserOptions bad;
  bad.tool_format = "smoke \"signals\"";
  const vrust::Error error = CHECK_ERROR(invalid_argument, engine().chat_parser(bad));
  CHECK(error.message().find("tool_format: must be one of auto, none") != std::string::npos);
  bad = parser_options();
  bad.tools_json = "[{}]";
  CHECK_ERROR(invalid_argument, engine().chat_parser(bad));

  // A parser that is gone, and one that outlives its engine.
  vrust::ChatParser moved = std::move(parser);
  CHECK_ERROR(invalid_argument, parser.push("a"));
  CHECK_ERROR(invalid_argument, parser.finish());
  CHECK_ERROR(invalid_argument, parser.info());
  vrust_chat_parser_destroy(moved.handle());
  CHECK_ERROR(invalid_argument, moved.push("a"));
  const vrust::Engine closed = ready_engine();
  vrust::ChatParser kept = GET(closed.chat_parser(parser_options()));
  closed.close();
  CHECK(parse(kept, text, 5).name == "now");
  CHECK_ERROR(invalid_argument, closed.chat_parser());
}

// Every kind of handle, made and dropped `count` times.
void use_handles(int count) {
  for (int i = 0; i < count; i++) {
    CHECK_ERROR(not_found, engine().abort(uint64_t{1} << 60));
    CHECK(!GET(engine().info_json()).empty());
    CHECK(!GET(GET(engine().tokenizer()).encode("Hello")).empty());
    CHECK(GET(GET(engine().chat_parser(parser_options())).push("<think>")) == "[]");
    const vrust::Queue queue = GET(engine().create_queue());
    const vrust::Queue other = GET(engine().default_queue());
  }
}

void leak_check() {
  const auto use_engine = [] {
    const vrust::Engine engine = ready_engine();
    GET(engine.generate(greedy("Hello", 4)));
    const vrust::Stream dropped = GET(engine.submit(endless("Hello")));
  };
  const auto use_streams = [](int count) {
    for (int i = 0; i < count; i++) const vrust::Stream kept = GET(engine().submit(endless("Hi")));
    check_idle(engine());
  };
  for (int i = 0; i < 4; i++) use_engine();
  use_streams(50);
  use_handles(500);

  const long threads = process_figure("Threads");
  long before = process_figure("VmRSS");
  // A kept engine is about 40 MiB, and shows twelve times.
  for (int i = 0; i < 12; i++) use_engine();
  check_growth("engines", before, 40 * 1024);
  // A kept stream keeps its request, and the engine is never idle again. Its memory would say
  // less: how much of the KV cache is touched depends on how many run at once.
  use_streams(500);
  // A kept handle is at least 100 bytes.
  before = process_figure("VmRSS");
  use_handles(sanitized ? 500 : 20000);
  check_growth("handles", before, 1024);
  CHECK(process_figure("Threads") == threads);
}

}  // namespace

int main(int argc, char** argv) {
  const Test tests[] = {
      {"version", version},
      {"bad_parameters", bad_parameters},
      {"generate", generate},
      {"stream", stream},
      {"chat", chat},
      {"logprobs", logprobs},
      {"cancel", cancel},
      {"deadline", deadline},
      {"many_at_once", many_at_once},
      {"slow_consumer", slow_consumer},
      {"close_while_running", close_while_running},
      {"chat_parser", chat_parser},
      {"leak_check", leak_check},
  };
  return run(tests, argc, argv);
}
