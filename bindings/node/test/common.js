'use strict';
// What the tests share.

const assert = require('node:assert/strict');
const path = require('node:path');
const { setTimeout: sleep } = require('node:timers/promises');
const { VrustError } = require('..');

const model = path.join(__dirname, '..', '..', '..', 'examples', 'demo-model');
const question = [{ role: 'user', content: 'What is the capital of France?' }];

/** A request that would run for long. */
const long = { prompt: 'Once', max_tokens: 900, ignore_eos: true };

async function collect(stream) {
  const deltas = [];
  for await (const delta of stream) deltas.push(delta);
  return deltas;
}

/** Expects a VrustError of this code from a call, and resolves with it. */
async function failure(code, call) {
  try {
    await call();
  } catch (error) {
    assert.ok(error instanceof VrustError, String(error));
    assert.equal(error.code, code, error.message);
    return error;
  }
  assert.fail(`no ${code}`);
}

/** Waits until the engine has nothing to do and its blocks are free. */
async function idle(engine) {
  for (let i = 0; i < 2000; i++) {
    const { liveRequests, numRequestsRunning, kvBlocksUsed } = engine.stats();
    if (liveRequests + numRequestsRunning + kvBlocksUsed === 0) return;
    await sleep(10);
  }
  assert.fail(`not idle: ${JSON.stringify(engine.stats())}`);
}

module.exports = { collect, failure, idle, long, model, question, sleep };
