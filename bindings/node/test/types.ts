// Compiled, never run: what index.d.ts must accept, and what it must refuse.

import { Engine, VrustError, version } from '../index.js';
import type { ChatParser, Delta, Result, Stats, Stream } from '../index.js';

export async function accepted(signal: AbortSignal): Promise<string> {
  const engine: Engine = await Engine.create({ model: 'm', maxNumSeqs: 4, dtype: 'float32' });
  const stream: Stream = engine.generate({ prompt: [1, 2], top_k: 3, min_p: 0.1 }, { signal });
  for await (const delta of stream) {
    const one: Delta = delta;
    console.log(one.text, one.logprobs[0]?.[0]?.rank, one.finishReason === 'stop');
  }
  const messages = [{ role: 'user', content: 'Hi' }];
  const result: Result = await engine.generateText({ messages, max_tokens: 4 });
  const ids: number[] = engine.encode('Hi', { addSpecialTokens: false });
  const stats: Stats = engine.stats();
  console.log(engine.decode(ids), engine.renderChat(messages), stats.steps, engine.info.model);
  const parser: ChatParser = engine.chatParser({ toolFormat: 'hermes', tools: [] });
  for (const delta of [...parser.push('Hi'), ...parser.finish()]) {
    console.log(delta.reasoning?.length, delta.tool_calls?.[0]?.function.name);
  }
  console.log(parser.info.keepSpecialTokens);
  parser.close();
  await engine[Symbol.asyncDispose]();
  return result.choices[0].text + version();
}

export function errors(error: unknown): boolean {
  return error instanceof VrustError && error.code === 'QUEUE_FULL' && error.retryable;
}

export async function refused(engine: Engine): Promise<void> {
  // @ts-expect-error: a model is required
  await Engine.create({});
  // @ts-expect-error: not a dtype
  await Engine.create({ model: 'm', dtype: 'int3' });
  // @ts-expect-error: not an option
  await Engine.create({ model: 'm', noSuchOption: 1 });
  // @ts-expect-error: use Engine.create
  new Engine();
  // @ts-expect-error: neither prompt nor messages
  engine.generate({ max_tokens: 4 });
  // @ts-expect-error: not a format
  engine.chatParser({ toolFormat: 'smoke signals' });
  // @ts-expect-error: text is a string
  engine.encode(4);
}
