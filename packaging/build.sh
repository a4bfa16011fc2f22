#!/usr/bin/env bash
# Packages that run on any Linux with glibc 2.28 or newer, in build/dist: a tarball of the C
# library and a Python wheel that carries it. The shared library is linked anew, from the static one
# of build/lib, by zig, which knows that glibc's symbols; its tools come from PyPI.
set -euo pipefail
cd "$(dirname "$0")/.."
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
machine=$(uname -m)
glibc=2.28
dist=$PWD/build/dist
: "${SOURCE_DATE_EPOCH:=$(git log -1 --format=%ct 2>/dev/null || echo 1700000000)}"
export SOURCE_DATE_EPOCH

tools=build/packaging
[ -x $tools/bin/python ] || python3 -m venv $tools
$tools/bin/pip -q install --disable-pip-version-check -r packaging/requirements.txt
export PATH=$PWD/$tools/bin:$PATH

rm -rf "$dist"
mkdir -p "$dist"

linked=$dist/linked
mkdir "$linked"
echo '{ global: vrust_*; local: *; };' >"$linked/exports"
python -m ziglang cc -target "$machine-linux-gnu.$glibc" -shared -s \
    -Wl,--whole-archive build/lib/libvrust.a -Wl,--no-whole-archive -lunwind \
    -Wl,--gc-sections -Wl,--version-script="$linked/exports" -Wl,-soname,libvrust.so.0 \
    -Wl,-z,nodelete -Wl,-z,relro -Wl,-z,now -o "$linked/libvrust.so"

name=vrust-$version-linux-$machine
stage=$dist/$name
mkdir -p "$stage"/{lib/pkgconfig,include/vrust}
install -m 755 "$linked/libvrust.so" "$stage/lib/libvrust.so.$version"
ln -s "libvrust.so.$version" "$stage/lib/libvrust.so.0"
ln -s libvrust.so.0 "$stage/lib/libvrust.so"
install -m 644 build/lib/libvrust.a "$stage/lib/"
install -m 644 include/vrust/vrust.h "$stage/include/vrust/"
cp -r bindings/cpp/include/vrust/. "$stage/include/vrust/"
sed "s/@VERSION@/$version/" cmake/vrust.pc.in >"$stage/lib/pkgconfig/vrust.pc"
install -m 644 LICENSE THIRD-PARTY.md packaging/README.md "$stage/"
tar --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$SOURCE_DATE_EPOCH" \
    -C "$dist" -cf - "$name" | gzip -n >"$dist/$name.tar.gz"
rm -r "$stage"

stage=$dist/wheel
cp -r bindings/python "$stage"
find "$stage" -name __pycache__ -prune -exec rm -r {} +
install -D -m 644 "$linked/libvrust.so" "$stage/vrust/lib/libvrust.so.0"
cp LICENSE THIRD-PARTY.md "$stage/"
(
    cd "$stage"
    python -m pip -q wheel --disable-pip-version-check --no-build-isolation --no-deps \
        --config-settings="--build-option=--plat-name=manylinux_2_28_$machine" -w "$dist" .
)
rm -r "$stage" "$linked"
# Pure Python with a library beside it: for every Python, on this platform.
wheel tags --remove --python-tag py3 --abi-tag none --platform-tag "manylinux_2_28_$machine" \
    "$dist"/*.whl >/dev/null
ls -l "$dist"
