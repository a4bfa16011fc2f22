'use strict';
// Compiles src/*.c into build/vrust.node with the C compiler alone: no download, no node-gyp.

const { execFileSync } = require('node:child_process');
const fs = require('node:fs');
const path = require('node:path');

/** The folder that holds node_api.h. */
function headers() {
  const places = [
    process.env.NODE_INCLUDE_DIR,
    path.join(path.dirname(process.execPath), '..', 'include', 'node'),
    '/usr/include/node',
  ];
  const found = places.find((place) => place && fs.existsSync(path.join(place, 'node_api.h')));
  if (found) return found;
  throw new Error('node_api.h not found: install Node.js with its headers (nodejs.org archive,' +
    ' libnode-dev), or set NODE_INCLUDE_DIR to the folder that holds it');
}

/** Compiler flags for vrust.h and libvrust: VRUST_BUILD, the repository's build/, pkg-config. */
function vrust() {
  const named = process.env.VRUST_BUILD;
  const prefix = path.resolve(named || path.join(__dirname, '..', '..', 'build'));
  const lib = path.join(prefix, 'lib');
  if (fs.existsSync(path.join(lib, 'libvrust.so'))) {
    return [`-I${path.join(prefix, 'include')}`, `-L${lib}`, '-lvrust', `-Wl,-rpath,${lib}`];
  }
  if (named) throw new Error(`VRUST_BUILD: no lib/libvrust.so in ${prefix}`);
  const ask = (...options) => execFileSync('pkg-config', [...options, 'vrust'],
    { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] }).trim();
  try {
    const flags = ask('--cflags', '--libs').split(/\s+/);
    return [...flags, `-Wl,-rpath,${ask('--variable=libdir')}`];
  } catch {
    throw new Error('libvrust not found: run `make build`, or set VRUST_BUILD to a folder with' +
      ' lib/ and include/, or PKG_CONFIG_PATH to that of vrust.pc');
  }
}

function main() {
  const out = path.join(__dirname, 'build');
  const src = path.join(__dirname, 'src');
  const sources = fs.readdirSync(src).filter((name) => name.endsWith('.c')).sort();
  const flags = ['-std=c11', '-D_GNU_SOURCE', '-DNAPI_VERSION=8', '-O2', '-g', '-fPIC', '-pthread',
    '-fvisibility=hidden', '-Wall', '-Wextra', '-Werror', '-shared', `-I${headers()}`];
  const libraries = vrust();
  fs.mkdirSync(out, { recursive: true });
  execFileSync(process.env.CC || 'cc', [
    ...flags, ...sources.map((name) => path.join(src, name)), ...libraries,
    '-o', path.join(out, 'vrust.node'),
  ], { stdio: 'inherit' });
}

try {
  main();
} catch (error) {
  console.error(`build.js: ${error.message}`);
  process.exitCode = 1;
}
