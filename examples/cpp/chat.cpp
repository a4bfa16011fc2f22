// chat: streams the answer to one question.
//   chat [MODEL_FOLDER] ["QUESTION"]

#include <iostream>
#include <vrust/vrust.hpp>

int main(int argc, char** argv) try {
  vrust::EngineOptions options;
  options.model = argc > 1 ? argv[1] : "examples/demo-model";
  const vrust::Engine engine = vrust::Engine::create(options).value();

  vrust::Request request;
  request.prompt = vrust::chat({{"user", argc > 2 ? argv[2] : "What is the capital of France?"}});
  request.temperature = 0.0f;
  request.deadline = std::chrono::seconds(60);

  vrust::Stream stream = engine.submit(request).value();
  for (const vrust::Delta& delta : stream) {
    std::cout << delta.text() << std::flush;
    if (delta.kind() == vrust::EventKind::finished) {
      std::cout << "\n(" << vrust::name(delta.finish_reason()) << ", " << delta.completion_tokens()
                << " tokens)\n";
    }
  }
  return 0;
} catch (const vrust::Error& error) {
  std::cerr << vrust::name(error.code()) << ": " << error.what() << '\n';
  return 1;
}
