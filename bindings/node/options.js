'use strict';
// Engine options: JavaScript names and values into those of VrustEngineOptions.

const { invalidArgument } = require('./errors.js');
const native = require('./native.js');

const ENUMS = {
  dtype: { auto: 0, float32: 1, float: 1, bfloat16: 2 },
  backend: { auto: 2, cpu: 0, reference: 1 },
  scheduling_policy: { fcfs: 0, priority: 1 },
  load_format: { auto: 0, safetensors: 0, dummy: 1 },
};

/** The addon's options; throws VrustError for what is not an option or out of range. */
function engineOptions(options) {
  if (options === null || typeof options !== 'object') {
    throw invalidArgument('options', 'must be an object');
  }
  const raw = {};
  for (const [name, value] of Object.entries(options)) {
    if (value === undefined) continue;
    if (name === 'extra') raw.extra_json = JSON.stringify(value);
    else raw[snake(name)] = fieldValue(name, value);
  }
  return raw;
}

function fieldValue(name, value) {
  const field = snake(name);
  const size = native.optionFields[field];
  if (size === undefined || field === 'extra_json' || name.includes('_')) {
    throw invalidArgument(name, 'unknown option');
  }
  if (size === 0) {
    if (typeof value !== 'string') throw invalidArgument(name, `must be a string, got ${value}`);
    return value;
  }
  const names = ENUMS[field];
  if (names) {
    if (Object.hasOwn(names, value)) return names[value];
    throw invalidArgument(name, `${value} is none of ${Object.keys(names).join(', ')}`);
  }
  const number = typeof value === 'boolean' ? Number(value) : value;
  const limit = size === 4 ? 2 ** 32 - 1 : Number.MAX_SAFE_INTEGER;
  if (!Number.isInteger(number) || number < 0 || number > limit) {
    throw invalidArgument(name, `must be an integer from 0 to ${limit}, got ${value}`);
  }
  return number;
}

function snake(name) {
  return name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
}

module.exports = { engineOptions };
