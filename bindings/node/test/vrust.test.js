'use strict';
// The tests that every binding passes, on the demo model.

const assert = require('node:assert/strict');
const fs = require('node:fs');
const { after, before, test } = require('node:test');
const { Engine, buildInfo, version } = require('..');
const { collect, failure, idle, long, model, question, sleep } = require('./common.js');

let engine;
before(async () => { engine = await Engine.create({ model, maxNumSeqs: 64 }); });
after(() => engine.close());

test('version', () => {
  assert.equal(version(), require('../package.json').version);
  assert.equal(buildInfo().version, version());
});

test('bad_parameters', async () => {
  const error = await failure('INVALID_ARGUMENT',
    () => engine.generate({ prompt: 'Hello', top_p: 1.5 }));
  assert.equal(error.detail.field, 'top_p');
  assert.match(error.message, /1\.5/);
  assert.deepEqual([error.status, error.retryable, error.name], [-1, false, 'VrustError']);
  await failure('INVALID_ARGUMENT', () => engine.generate({ prompt: 'Hello', no_such_field: 1 }));
  await failure('UNSUPPORTED', () => engine.generate({ prompt: 'Hello', use_beam_search: true }));
  await failure('NOT_FOUND', () => Engine.create({ model: 'no/such/folder' }));
  await failure('INVALID_ARGUMENT', () => Engine.create({ model, dtype: 'int3' }));
  await failure('INVALID_ARGUMENT', () => Engine.create({ model, maxModelLen: -1 }));
  await failure('INVALID_ARGUMENT', () => Engine.create({ model, noSuchOption: 1 }));
  await failure('INVALID_ARGUMENT', () => Engine.create({ model: 7 }));
  await failure('INVALID_ARGUMENT', () => Engine.create({}));
  await failure('UNSUPPORTED', () => Engine.create({ model, extra: { swap_space: 4 } }));
  await failure('CONTEXT_LENGTH', () => collect(engine.generate({ prompt: 'long '.repeat(2e4) })));
  assert.throws(() => engine.generate(undefined), TypeError);
});

test('generate', async () => {
  const request = { prompt: 'The capital of France is', temperature: 0, max_tokens: 8 };
  const [first, again] = await Promise.all([1, 2].map(() => engine.generateText(request)));
  assert.match(first.text, /Paris/);
  assert.deepEqual(again.choices, first.choices);
  assert.equal(first.completionTokens, first.choices[0].tokenIds.length);
  const ids = engine.encode(request.prompt);
  assert.equal(first.promptTokens, ids.length);
  assert.equal((await engine.generateText({ ...request, prompt: ids })).text, first.text);
  assert.equal(engine.decode(ids), request.prompt);
  assert.deepEqual(engine.encode(request.prompt, { addSpecialTokens: false }), ids.slice(1));
  const two = await engine.generateText({ prompt: 'Once', n: 2, seed: 1, max_tokens: 8 });
  assert.equal(two.choices.length, 2);
  assert.ok(engine.info.max_model_len > 0);
});

test('stream', async () => {
  const request = { prompt: 'Once upon a time', temperature: 0, max_tokens: 24 };
  const [whole] = (await engine.generateText(request)).choices;
  const deltas = await collect(engine.generate(request));
  assert.equal(deltas.map((delta) => delta.text).join(''), whole.text);
  assert.deepEqual(deltas.flatMap((delta) => delta.tokenIds), whole.tokenIds);
  assert.equal(deltas.at(-1).finishReason, whole.finishReason);
  assert.equal(deltas.filter((delta) => delta.finishReason !== undefined).length, 1);
  const stream = engine.generate(request);
  const nexts = await Promise.all(Array.from({ length: 40 }, () => stream.next()));
  assert.equal(nexts.map(({ value }) => value?.text ?? '').join(''), whole.text);
  assert.ok(nexts.at(-1).done);
});

test('chat', async () => {
  const result = await engine.generateText({ messages: question, temperature: 0, max_tokens: 40 });
  assert.match(result.text, /Paris/);
  assert.equal(result.choices[0].finishReason, 'stop');
  const prompt = engine.renderChat(question);
  assert.ok(prompt.includes(question[0].content));
  assert.ok(prompt.startsWith(engine.renderChat(question, { addGenerationPrompt: false })));
  await failure('INVALID_ARGUMENT', () => engine.renderChat('not messages'));
});

test('logprobs', async () => {
  const prompt = 'The capital of France is';
  const result = await engine.generateText(
    { prompt, temperature: 0, max_tokens: 4, logprobs: 3, prompt_logprobs: 1 });
  const [choice] = result.choices;
  assert.equal(choice.logprobs.length, choice.tokenIds.length);
  choice.logprobs.forEach(([chosen], i) => {
    assert.equal(chosen.tokenId, choice.tokenIds[i]);
    assert.equal(chosen.rank, 1);
    assert.ok(chosen.logprob <= 0);
  });
  assert.equal(result.promptLogprobs.length, result.promptTokens);
  assert.deepEqual(result.promptLogprobs[0], []);
});

test('cancel', async () => {
  for await (const delta of engine.generate(long)) if (delta.tokenIds.length > 0) break;
  const controller = new AbortController();
  const stream = engine.generate(long, { signal: controller.signal });
  await stream.next();
  setTimeout(() => controller.abort(new Error('enough')), 5);
  await assert.rejects(collect(stream), /enough/);
  assert.throws(() => engine.generate(long, { signal: controller.signal }), /enough/);
  const told = engine.generate(long);
  told.abort();
  assert.equal((await collect(told)).at(-1).finishReason, 'abort');
  const left = engine.generate(long);
  const waiting = left.next();
  await left.return();
  await waiting;
  assert.ok((await left.next()).done);
  await idle(engine);
});

test('dropped_stream', async () => {
  const before = engine.stats().finishedAbort;
  (() => { engine.generate(long); })();
  await sleep(1);
  for (let i = 0; i < 50 && engine.stats().finishedAbort === before; i++) {
    global.gc();
    await sleep(1);
  }
  await idle(engine);
  assert.equal(engine.stats().finishedAbort, before + 1);
});

test('deadline', async () => {
  const deltas = await collect(engine.generate({ ...long, deadline_ms: 20 }));
  assert.equal(deltas.at(-1).finishReason, 'deadline');
});

test('many_at_once', async () => {
  const request = (i) => ({ prompt: `The number ${i} is`, temperature: 0, max_tokens: 12 });
  const alone = [];
  for (let i = 0; i < 5; i++) alone.push((await engine.generateText(request(i))).text);
  const together = await Promise.all(
    Array.from({ length: 100 }, (_, i) => engine.generateText(request(i))));
  assert.deepEqual(together.slice(0, 5).map((result) => result.text), alone);
  assert.ok(together.every((result) => result.choices[0].finishReason !== 'unknown'));
});

test('slow_consumer', async () => {
  const request = { prompt: 'Once upon a time', temperature: 0, max_tokens: 64, ignore_eos: true };
  const stream = engine.generate(request);
  const fast = await engine.generateText(request);
  await idle(engine);
  await sleep(20);
  const deltas = await collect(stream);
  assert.equal(deltas.map((delta) => delta.text).join(''), fast.text);
  assert.ok(deltas.length <= 2, `${deltas.length} deltas`);
});

test('close_while_running', async () => {
  const other = await Engine.create({ model });
  const streams = Array.from({ length: 8 }, () => other.generate(long));
  await streams[0].next();
  const reads = streams.map(collect);
  const [, , ...ends] = await Promise.all([other.close(), other.close(), ...reads]);
  assert.deepEqual(ends.map((deltas) => deltas.at(-1).finishReason), Array(8).fill('abort'));
  await failure('SHUTTING_DOWN', () => other.generate({ prompt: 'Hello' }));
  await failure('SHUTTING_DOWN', () => other.prometheus());
  await other.close();
});

/** The answer in pieces of `size` characters, put together from its deltas. */
function parse(parser, text, size) {
  const joined = { reasoning: '', content: '', name: '', arguments: '' };
  const deltas = [];
  for (let i = 0; i < text.length; i += size) deltas.push(...parser.push(text.slice(i, i + size)));
  for (const delta of [...deltas, ...parser.finish()]) {
    joined.reasoning += delta.reasoning ?? '';
    joined.content += delta.content ?? '';
    for (const call of delta.tool_calls ?? []) {
      assert.equal(call.index, 0);
      for (const [key, value] of Object.entries(call.function)) joined[key] += value;
    }
  }
  return joined;
}

test('chat_parser', async () => {
  const options = {
    toolFormat: 'hermes',
    reasoningFormat: 'think',
    tools: [{ type: 'function', function: { name: 'now' } }],
  };
  const text = '<think>\nHm.\n</think>\n\nHi <tool_call>{"name": "now", "arguments": ' +
    '{"a": "\u00e9t\u00e9"}}</tool_call>';
  const parser = engine.chatParser(options);
  assert.deepEqual(parser.info, { toolFormat: 'hermes', reasoningFormat: 'think',
    startsInReasoning: false, keepSpecialTokens: false });
  for (const size of [text.length, 1, 2, 3, 7]) { // As new after each end.
    assert.deepEqual(parse(parser, text, size), { reasoning: 'Hm.', content: 'Hi', name: 'now',
      arguments: '{"a": "\u00e9t\u00e9"}' });
  }
  assert.deepEqual(parser.push('a <tool_ca'), [{ content: 'a' }]);
  assert.deepEqual(parser.push(''), []);
  assert.deepEqual(parser.finish(), [{ content: ' <tool_ca' }]);
  assert.throws(() => parser.push(5), TypeError);

  // Without tools, or a format in the template, the text stays as it is.
  const plain = engine.chatParser();
  assert.deepEqual(plain.info, { toolFormat: null, reasoningFormat: null,
    startsInReasoning: false, keepSpecialTokens: false });
  assert.equal(parse(plain, '<tool_call> x', 4).content, '<tool_call> x');

  const error = await failure('INVALID_ARGUMENT',
    () => engine.chatParser({ toolFormat: 'smoke "signals"' }));
  assert.match(error.message, /tool_format: must be one of auto, none/);
  await failure('INVALID_ARGUMENT', () => engine.chatParser({ ...options, tools: [{}] }));
  await failure('INVALID_ARGUMENT', () => engine.chatParser({ chatTemplateKwargs: [1] }));
  const other = await failure('INVALID_ARGUMENT', () => engine.chatParser({ other: 1 }));
  assert.match(other.message, /other/);

  // A parser that is gone, and one that outlives its engine.
  parser.close();
  parser[Symbol.dispose]();
  await failure('INVALID_ARGUMENT', () => parser.push('a'));
  await failure('INVALID_ARGUMENT', () => parser.finish());
  const closed = await Engine.create({ model });
  const kept = closed.chatParser(options);
  await closed.close();
  assert.equal(parse(kept, text, 5).name, 'now');
  await failure('SHUTTING_DOWN', () => closed.chatParser(options));
});

test('leak_check', async () => {
  const once = async (close) => {
    const other = await Engine.create({ model });
    await other.generateText({ prompt: 'Hello', max_tokens: 4 });
    other.chatParser().push('Hello');
    other.generate(long);
    if (close) await other[Symbol.asyncDispose]();
  };
  const threads = () => fs.readdirSync('/proc/self/task').length;
  const settle = async (count) => {
    for (let i = 0; i < 500 && (i < 3 || threads() > count); i++) {
      global.gc();
      await sleep(10);
    }
  };
  const start = threads();
  for (let i = 0; i < 4; i++) await once(i % 2 === 0);
  await settle(start);
  const memory = process.memoryUsage.rss();
  for (let i = 0; i < 12; i++) await once(i % 2 === 0);
  await settle(start);
  assert.equal(threads(), start);
  // Each engine holds over 20 MiB: one that is kept shows twelve times.
  assert.ok(process.memoryUsage.rss() - memory < 60 << 20);
});

test('stats', async () => {
  await engine.generateText({ prompt: 'Hello', max_tokens: 4, ignore_eos: true });
  const { generationTokens, kvBlocksTotal, kvBlocksUsed } = engine.stats();
  assert.ok(generationTokens >= 4 && kvBlocksTotal > 0);
  assert.equal(kvBlocksUsed, 0);
  assert.match(engine.prometheus(), /^vllm:generation_tokens/m);
});
