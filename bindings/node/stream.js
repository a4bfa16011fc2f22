'use strict';
// The deltas of one request on their way to its consumer.

const { VrustError } = require('./errors.js');
const native = require('./native.js');

/** Where the engine's reports leave a request's deltas. Knows nothing of the Stream, which can
 * thus be collected, and its request aborted, when its consumer drops it. */
class Mailbox {
  constructor() {
    this.items = [];
    this.waiters = [];
    this.failure = null;
    this.ended = false;
    this.onEnd = null;
  }

  /** One event of the request. */
  push({ last, delta, failure }) {
    if (!this.ended && delta && !this.#merge(delta)) this.items.push(delta);
    if (!this.ended && failure) {
      const { message, code, status, detail } = failure;
      this.failure = new VrustError(message, code, status, false, detail);
    }
    if (last) this.end();
    this.#serve();
  }

  /** Ends at once with a failure; what waits is dropped. */
  fail(failure) {
    if (this.ended) return;
    this.items = [];
    this.failure = failure;
    this.end();
    this.#serve();
  }

  /** Takes nothing more. */
  end() {
    if (this.ended) return;
    this.ended = true;
    this.onEnd?.();
    this.onEnd = null;
  }

  /** Drops what waits: the consumer left. */
  discard() {
    this.items = [];
    this.failure = null;
    this.end();
    this.#serve();
  }

  /** The next delta. `owner` stays alive until it is there. */
  take(owner) {
    return new Promise((resolve, reject) => {
      this.waiters.push({ resolve, reject, owner });
      this.#serve();
    });
  }

  #serve() {
    while (this.waiters.length > 0) {
      if (this.items.length > 0) {
        this.waiters.shift().resolve({ value: this.items.shift(), done: false });
      } else if (this.failure !== null) {
        const failure = this.failure;
        this.failure = null;
        this.waiters.shift().reject(failure);
      } else if (this.ended) {
        this.waiters.shift().resolve({ value: undefined, done: true });
      } else {
        return;
      }
    }
  }

  /** Adds to the delta that waits, so that a slow consumer costs no queue. */
  #merge(delta) {
    const tail = this.items.at(-1);
    if (!tail || tail.isPrompt || delta.isPrompt || tail.finishReason !== undefined ||
        tail.choice !== delta.choice) return false;
    tail.text += delta.text;
    for (const id of delta.tokenIds) tail.tokenIds.push(id);
    for (const place of delta.logprobs) tail.logprobs.push(place);
    for (const name of FINISH_FIELDS) {
      if (delta[name] !== undefined) tail[name] = delta[name];
    }
    return true;
  }
}

const FINISH_FIELDS = ['finishReason', 'stopReason', 'promptTokens', 'cachedTokens',
  'completionTokens', 'cumulativeLogprob'];

const dropped = new FinalizationRegistry(({ core, id }) => native.abort(core, id));

/** The deltas of one request, an async iterator. Leaving it early aborts the request. */
class Stream {
  #mailbox;
  #core;
  #id;

  constructor(core, id, mailbox, signal) {
    this.#core = core;
    this.#id = id;
    this.#mailbox = mailbox;
    const token = {};
    dropped.register(this, { core, id }, token);
    const onAbort = () => {
      native.abort(core, id);
      mailbox.fail(signal.reason);
    };
    signal?.addEventListener('abort', onAbort, { once: true });
    mailbox.onEnd = () => {
      dropped.unregister(token);
      signal?.removeEventListener('abort', onAbort);
    };
  }

  next() {
    return this.#mailbox.take(this);
  }

  async return(value) {
    this.abort();
    this.#mailbox.discard();
    return { value, done: true };
  }

  async throw(error) {
    await this.return();
    throw error;
  }

  /** Aborts the request: a last delta says finishReason "abort", unless it has ended already. */
  abort() {
    if (!this.#mailbox.ended) native.abort(this.#core, this.#id);
  }

  [Symbol.asyncIterator]() {
    return this;
  }

  async [Symbol.asyncDispose]() {
    await this.return();
  }
}

module.exports = { Mailbox, Stream };
