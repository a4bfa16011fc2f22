'use strict';
// Asks a model one question and prints the answer as it comes.
//   node chat.js [MODEL_FOLDER] [QUESTION]

const path = require('node:path');
const { Engine } = require('../../bindings/node');

const folder = path.join(__dirname, '..', 'demo-model');
const [model = folder, content = 'What is the capital of France?'] = process.argv.slice(2);

async function main() {
  const engine = await Engine.create({ model });
  const request = { messages: [{ role: 'user', content }], temperature: 0, max_tokens: 64 };
  for await (const delta of engine.generate(request)) process.stdout.write(delta.text);
  process.stdout.write('\n');
  await engine.close();
}

main();
