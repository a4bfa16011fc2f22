'use strict';
// What is Node's own: the event loop, workers, the process's end, modules, types.

const assert = require('node:assert/strict');
const { execFile } = require('node:child_process');
const path = require('node:path');
const { test } = require('node:test');
const { promisify } = require('node:util');
const { Worker } = require('node:worker_threads');
const { Engine } = require('..');
const { collect, long, model, sleep } = require('./common.js');

const run = promisify(execFile);
const here = path.join(__dirname, '..');

/** What a program of its own prints; fails when it does not end in time, or with an error. */
async function program(code, ...flags) {
  const options = { cwd: here, timeout: 20000, env: { ...process.env, MODEL: model } };
  return (await run(process.execPath, [...flags, '-e', code], options)).stdout;
}

test('event_loop', async () => {
  let ticks = 0;
  let longest = 0;
  let last = performance.now();
  const timer = setInterval(() => {
    longest = Math.max(longest, performance.now() - last);
    last = performance.now();
    ticks++;
  }, 1);
  const engine = await Engine.create({ model });
  await Promise.all(Array.from({ length: 8 }, () =>
    engine.generateText({ prompt: 'Once', max_tokens: 200, ignore_eos: true })));
  await engine.close();
  clearInterval(timer);
  assert.ok(ticks > 10, `${ticks} ticks`);
  assert.ok(longest < 250, `${longest} ms without the event loop`);
});

test('exits_when_idle', async () => {
  const create = 'require(".").Engine.create({ model: process.env.MODEL })';
  // Kept alive by its creation and its request, not by the engine itself.
  const text = await program(`${create}.then(async (engine) => {
    globalThis.engine = engine;
    const { text } = await engine.generateText(
      { prompt: 'The capital of France is', temperature: 0, max_tokens: 8 });
    console.log(text);
  })`);
  assert.match(text, /Paris/);
  const request = JSON.stringify(long);
  await program(`${create}.then((engine) => { engine.generate(${request}); process.exit(0); })`);
  await program(`${create}; process.exit(0)`);
  await program(`${create}.then((engine) => engine.close()).then(() => console.log('closed'))`)
    .then((output) => assert.equal(output, 'closed\n'));
  await assert.rejects(program(`${create}.then((engine) => {
    engine.generate(${request});
    throw new Error('on purpose');
  })`), /on purpose/);
});

test('worker_threads', async () => {
  const code = `
    const { parentPort, workerData } = require('node:worker_threads');
    const { Engine } = require(workerData.here);
    Engine.create({ model: workerData.model }).then(async (engine) => {
      const request = { prompt: 'The capital of France is', temperature: 0, max_tokens: 8 };
      parentPort.postMessage((await engine.generateText(request)).text);
      if (!workerData.request) return;
      for await (const delta of engine.generate(workerData.request)) parentPort.postMessage('.');
    });
    if (workerData.early) parentPort.postMessage('early');`;
  const start = (data) => new Worker(code, { eval: true, workerData: { here, model, ...data } });
  const first = (worker) => new Promise((resolve, reject) => {
    worker.once('message', resolve).once('error', reject);
  });
  const main = await Engine.create({ model });
  const reading = collect(main.generate({ ...long, max_tokens: 300 }));
  const idle = [start(), start()];
  const ended = idle.map((worker) => new Promise((resolve) => worker.once('exit', resolve)));
  for (const text of await Promise.all(idle.map(first))) assert.match(text, /Paris/);
  assert.deepEqual(await Promise.all(ended), [0, 0]);
  for (let i = 0; i < 4; i++) {
    const busy = start({ request: long });
    await first(busy);
    await sleep(5 * i);
    await busy.terminate();
    const loading = start({ early: true });
    assert.equal(await first(loading), 'early');
    await loading.terminate();
  }
  assert.equal((await reading).at(-1).finishReason, 'length');
  await main.close();
});

test('esm', async () => {
  const output = await program(`
    import vrust, { Engine, VrustError, buildInfo, version } from './index.mjs';
    const engine = await Engine.create({ model: process.env.MODEL });
    const { text } = await engine.generateText({ messages: [{ role: 'user', content: 'Hi' }] });
    console.log(text.length > 0, vrust.Engine === Engine, version() === buildInfo().version);
    try {
      engine.generate({ prompt: 'x', n: 0 });
    } catch (error) {
      console.log(error instanceof VrustError);
    }
  `, '--input-type=module');
  assert.equal(output, 'true true true\ntrue\n');
});

test('example', async () => {
  const example = path.join(here, '..', '..', 'examples', 'node', 'chat.js');
  assert.match((await run(process.execPath, [example], { timeout: 20000 })).stdout, /Paris/);
});

test('types', async () => {
  await run(process.execPath, [require.resolve('typescript/bin/tsc'), '-p', 'test'], { cwd: here });
});
