'use strict';
// The compiled addon.

const path = require('node:path');
const { VrustError } = require('./errors.js');

function load() {
  const file = path.join(__dirname, 'build', 'vrust.node');
  try {
    return require(file);
  } catch (error) {
    error.message = `vrust: ${error.message}; run \`npm run build\` in ${__dirname}`;
    throw error;
  }
}

const native = load();
native.setErrorClass(VrustError);
module.exports = native;
