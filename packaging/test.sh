#!/usr/bin/env bash
# Tests of the packages in build/dist: what they need of a system, and that they work alone.
set -euo pipefail
cd "$(dirname "$0")/.."
dist=$PWD/build/dist
root=$PWD
passed=0
pass() { passed=$((passed + 1)); echo "ok $1"; }
temp=$(mktemp -d)
trap 'rm -rf "$temp"' EXIT

tar -C "$temp" -xzf "$dist"/vrust-*-linux-*.tar.gz
home=$(echo "$temp"/vrust-*)
library=$(readlink -f "$home/lib/libvrust.so")

highest=$(objdump -T "$library" | grep -o 'GLIBC_[0-9.]*' | sort -Vu | tail -n 1)
[ "$(printf '%s\n' GLIBC_2.28 "$highest" | sort -V | tail -n 1)" = GLIBC_2.28 ] ||
    { echo "the library needs $highest"; exit 1; }
pass "the highest glibc symbol is $highest"

needed=$(readelf -d "$library" | sed -n 's/.*NEEDED.*\[\(.*\)\]/\1/p' | sort | tr '\n' ' ')
for name in $needed; do
    case $name in
    libc.so.6 | libm.so.6 | libdl.so.2 | libpthread.so.0 | librt.so.1 | ld-linux-*) ;;
    *) echo "the library needs $name"; exit 1 ;;
    esac
done
pass "it needs nothing but glibc: $needed"
readelf -d "$library" | grep -q 'SONAME.*\[libvrust.so.0\]'
pass "its soname is libvrust.so.0"

symbols() { nm -D --defined-only "$1" | awk '{print $3}' | sed 's/@.*//' | grep -v '^$' | sort; }
diff <(symbols "$library") <(symbols build/lib/libvrust.so)
pass "it exports what the ordinary build does"

PKG_CONFIG_PATH=$home/lib/pkgconfig
export PKG_CONFIG_PATH
# shellcheck disable=SC2046
cc -std=c99 -D_POSIX_C_SOURCE=200809L examples/c/demo.c -o "$temp/demo" \
    $(pkg-config --cflags --libs vrust) -Wl,-rpath,"$home/lib"
"$temp/demo" examples/demo-model >"$temp/out"
grep -q 'tokens/s' "$temp/out"
pass "a C program builds against the tarball and runs"

python3 -m venv "$temp/venv"
"$temp/venv/bin/pip" -q install --disable-pip-version-check --no-index "$dist"/*.whl
"$temp/venv/bin/pip" -q check
pass "the wheel installs with no index and no compiler"
cp -r bindings/python/tests "$temp/tests"
mkdir -p "$temp/examples"
ln -s "$root/examples/demo-model" "$temp/examples/demo-model"
cat >"$temp/page.py" <<'END'
import vrust
from vrust import LLM, SamplingParams

assert "site-packages" in vrust.__file__, vrust.__file__
llm = LLM(model="examples/demo-model", tensor_parallel_size=1, gpu_memory_utilization=0.8)
sampling_params = SamplingParams(temperature=0.8, top_p=0.95, max_tokens=100)
prompts = ["Hello, my name is", "The capital of France is", "The future of AI is"]
for output in llm.generate(prompts, sampling_params):
    print(f"Prompt: {output.prompt!r}, Generated text: {output.outputs[0].text!r}")
END
(cd "$temp" && env -u VRUST_LIBRARY -u PYTHONPATH venv/bin/python page.py)
pass "the wheel serves a model"
tag=$(unzip -p "$dist"/*.whl '*/WHEEL' | sed -n 's/^Tag: //p')
[ "$tag" = "py3-none-manylinux_2_28_$(uname -m)" ]
pass "its tag is $tag"
echo "$passed passed"
