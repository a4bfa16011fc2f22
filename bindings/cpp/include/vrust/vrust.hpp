/// vrust for C++17: an LLM serving engine as a library. Header-only, over `vrust/vrust.h`.
///
///   vrust::EngineOptions options;
///   options.model = "examples/demo-model";
///   auto engine = vrust::Engine::create(options).value();
///
///   vrust::Request request;
///   request.prompt = vrust::chat({{"user", "What is the capital of France?"}});
///   auto stream = engine.submit(request).value();
///   for (const auto& delta : stream) std::cout << delta.text();
///
/// What holds for everything here:
///
/// Errors. What can fail returns a `Result<T>`: test it, then use `*result`, or look at
///   `result.error()`. With exceptions `result.value()` throws the `Error` instead. Under
///   -fno-exceptions, or with VRUST_NO_EXCEPTIONS defined, whatever throws an Error is gone and the
///   rest is the same. Memory that the header itself cannot get is std::bad_alloc, as everywhere.
///
/// Ownership. Engine, Queue, Stream, Tokenizer and ChatParser are move-only and give back what they
///   hold when they are destroyed, in any order. One that was moved from may only be destroyed or
///   assigned to; its calls fail with ErrorCode::invalid_argument.
///
/// Threads. const functions of one object may be called by many threads at the same time; all
///   others need one thread at a time. No function may run while its object is destroyed or moved:
///   to end an engine or a queue under other threads, call its close(), which is const, first.
///
/// Text is UTF-8. Times are std::chrono; `forever`, and any negative one, is no limit.

#ifndef VRUST_VRUST_HPP
#define VRUST_VRUST_HPP

#include <vrust/cpp/chat_parser.hpp>
#include <vrust/cpp/engine.hpp>
#include <vrust/cpp/error.hpp>
#include <vrust/cpp/event.hpp>
#include <vrust/cpp/log.hpp>
#include <vrust/cpp/options.hpp>
#include <vrust/cpp/output.hpp>
#include <vrust/cpp/queue.hpp>
#include <vrust/cpp/request.hpp>
#include <vrust/cpp/stream.hpp>
#include <vrust/cpp/tokenizer.hpp>
#include <vrust/cpp/version.hpp>

#endif
