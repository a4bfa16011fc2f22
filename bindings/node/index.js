'use strict';
// vrust for Node.js. index.d.ts is the manual.

const { ChatParser, parserOptions } = require('./chatparser.js');
const { VrustError } = require('./errors.js');
const native = require('./native.js');
const { engineOptions } = require('./options.js');
const { Mailbox, Stream } = require('./stream.js');

const ENCODE_SPECIAL_TOKENS = 1;
const DECODE_SKIP_SPECIAL_TOKENS = 1;
const CHAT_GENERATION_PROMPT = 1;
const CHAT_CONTINUE_FINAL = 2;

/** What the pump thread reports to. It does not refer to the Engine, which can be collected. */
class Link {
  constructor() {
    this.mailboxes = new Map();
    this.ready = new Promise((resolve, reject) => {
      this.settle = { resolve, reject };
    });
    this.closed = new Promise((resolve) => {
      this.onClosed = resolve;
    });
  }

  report(kind, value) {
    if (kind === 'ready') this.settle.resolve();
    else if (kind === 'failed') this.settle.reject(value);
    else if (kind === 'events') this.dispatch(value);
    else this.end();
  }

  dispatch(events) {
    for (const event of events) {
      this.mailboxes.get(event.key)?.push(event);
      if (event.last) this.mailboxes.delete(event.key);
    }
  }

  end() {
    for (const mailbox of this.mailboxes.values()) mailbox.fail(closedError());
    this.mailboxes.clear();
    this.onClosed();
  }
}

class Engine {
  #core;
  #link;
  #closing = false;
  #nextKey = 1;

  constructor(core, link) {
    if (!(link instanceof Link)) throw new TypeError('use Engine.create');
    this.#core = core;
    this.#link = link;
    this.info = JSON.parse(native.infoJson(core));
  }

  static async create(options) {
    const link = new Link();
    const core = native.open(engineOptions(options), link.report.bind(link));
    await link.ready;
    return new Engine(core, link);
  }

  generate(request, { signal } = {}) {
    this.#check();
    signal?.throwIfAborted();
    const key = this.#nextKey++;
    const mailbox = new Mailbox();
    const id = native.submit(this.#core, JSON.stringify(request), key);
    this.#link.mailboxes.set(key, mailbox);
    return new Stream(this.#core, id, mailbox, signal);
  }

  async generateText(request, options) {
    const choices = [];
    const result = { text: '', choices, promptLogprobs: [], promptTokens: 0, completionTokens: 0 };
    for await (const delta of this.generate(request, options)) {
      if (delta.isPrompt) result.promptLogprobs = delta.logprobs;
      const choice = choices[delta.choice] ??= { text: '', tokenIds: [], logprobs: [],
        finishReason: 'unknown', stopReason: null, completionTokens: 0 };
      choice.text += delta.text;
      for (const id of delta.tokenIds) choice.tokenIds.push(id);
      if (delta.isPrompt) continue;
      for (const place of delta.logprobs) choice.logprobs.push(place);
      if (delta.finishReason === undefined) continue;
      choice.finishReason = delta.finishReason;
      choice.stopReason = delta.stopReason;
      choice.completionTokens = delta.completionTokens;
      result.promptTokens = delta.promptTokens;
      result.completionTokens += delta.completionTokens;
    }
    result.text = choices[0].text;
    return result;
  }

  encode(text, { addSpecialTokens = true } = {}) {
    this.#check();
    const ids = native.encode(this.#core, text, addSpecialTokens ? ENCODE_SPECIAL_TOKENS : 0);
    return Array.from(ids);
  }

  decode(ids, { skipSpecialTokens = true } = {}) {
    this.#check();
    const flags = skipSpecialTokens ? DECODE_SKIP_SPECIAL_TOKENS : 0;
    return native.decode(this.#core, Uint32Array.from(ids), flags);
  }

  renderChat(messages, options = {}) {
    const { tools, kwargs, addGenerationPrompt = true, continueFinalMessage = false } = options;
    this.#check();
    const flags = (addGenerationPrompt && !continueFinalMessage ? CHAT_GENERATION_PROMPT : 0) |
      (continueFinalMessage ? CHAT_CONTINUE_FINAL : 0);
    const json = (value) => (value === undefined ? '' : JSON.stringify(value));
    return native.renderChat(this.#core, json(messages), json(tools), json(kwargs), flags);
  }

  chatParser(options) {
    this.#check();
    return new ChatParser(native.chatParser(this.#core, parserOptions(options)));
  }

  stats() {
    this.#check();
    return native.stats(this.#core);
  }

  prometheus() {
    this.#check();
    return native.prometheus(this.#core);
  }

  close() {
    if (!this.#closing) native.close(this.#core);
    this.#closing = true;
    return this.#link.closed;
  }

  [Symbol.asyncDispose]() {
    return this.close();
  }

  #check() {
    if (this.#closing) throw closedError();
  }
}

function closedError() {
  return new VrustError('the engine is closed', 'SHUTTING_DOWN', -16, false);
}

exports.Engine = Engine;
exports.VrustError = VrustError;
/** The library's version. */
exports.version = () => native.version;
/** How the library was built. */
exports.buildInfo = () => JSON.parse(native.buildInfo);
