// Tests a running server, named by VRUST_URL, with the official Node client.
import assert from "node:assert/strict";
import test from "node:test";
import OpenAI from "openai";

const client = new OpenAI({
  baseURL: `${process.env.VRUST_URL}/v1`, apiKey: "dummy", maxRetries: 0,
});
const chat = (extra) => ({
  model: "demo", messages: [{ role: "user", content: "Hello" }], temperature: 0, ...extra,
});

test("chat", async () => {
  const answer = await client.chat.completions.create(chat());
  assert.ok(answer.choices[0].message.content);
  assert.equal(answer.usage.total_tokens,
    answer.usage.prompt_tokens + answer.usage.completion_tokens);
});

test("completion", async () => {
  const answer = await client.completions.create({
    model: "demo", prompt: ["Once", "The"], max_tokens: 5, temperature: 0,
  });
  assert.deepEqual(answer.choices.map((c) => c.index), [0, 1]);
});

test("stream", async () => {
  const whole = await client.chat.completions.create(chat());
  const stream = await client.chat.completions.create(
    chat({ stream: true, stream_options: { include_usage: true } }));
  let text = "", usage = null, ends = 0;
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta?.content ?? "";
    ends += chunk.choices[0]?.finish_reason ? 1 : 0;
    usage = chunk.usage ?? usage;
  }
  assert.equal(text, whole.choices[0].message.content);
  assert.deepEqual([ends, usage], [1, whole.usage]);
});

test("the stream helper", async () => {
  const final = await client.chat.completions.stream(chat()).finalChatCompletion();
  assert.ok(final.choices[0].message.content);
});

test("errors", async () => {
  await assert.rejects(client.chat.completions.create(chat({ model: "nobody" })),
    (e) => e instanceof OpenAI.NotFoundError && e.param === "model");
  await assert.rejects(client.chat.completions.create(chat({ temperature: 9 })),
    (e) => e instanceof OpenAI.BadRequestError && e.param === "temperature");
});

test("cancel", async () => {
  const stream = await client.completions.create({
    model: "demo", prompt: "Once", max_tokens: 2000, n: 16, ignore_eos: true, stream: true,
  });
  for await (const _ of stream) break;
  for (let i = 0; i < 500; i++) {
    const text = await (await fetch(`${process.env.VRUST_URL}/metrics`)).text();
    if (/^vrust:live_requests\{.*\} 0/m.test(text)) return;
    await new Promise((done) => setTimeout(done, 10));
  }
  assert.fail("the request goes on");
});
