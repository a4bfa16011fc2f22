'use strict';
// Tells reasoning and tool calls from content in a chat model's text as it comes.

const native = require('./native.js');

class ChatParser {
  #handle;

  constructor(handle) {
    this.#handle = handle;
    const found = JSON.parse(native.chatParserInfo(handle));
    this.info = Object.freeze({
      toolFormat: found.tool_format,
      reasoningFormat: found.reasoning_format,
      startsInReasoning: found.starts_in_reasoning,
      keepSpecialTokens: found.keep_special_tokens,
    });
  }

  push(text) {
    return JSON.parse(native.chatParserPush(this.#handle, text));
  }

  finish() {
    return JSON.parse(native.chatParserFinish(this.#handle));
  }

  close() {
    native.chatParserClose(this.#handle);
  }

  [Symbol.dispose]() {
    this.close();
  }
}

/** The options as vrust_chat_parser_create takes them. */
function parserOptions({ toolFormat, reasoningFormat, tools, chatTemplateKwargs, ...rest } = {}) {
  return JSON.stringify({
    ...rest, // Refused by the library, by name.
    tool_format: toolFormat,
    reasoning_format: reasoningFormat,
    tools,
    chat_template_kwargs: chatTemplateKwargs,
  });
}

module.exports = { ChatParser, parserOptions };
