# Where the emulation is built, and how. For other scripts to read.
# shellcheck shell=bash disable=SC2034
out=${VRUST_EMU_BUILD:-build/cuda}
cxx=${CXX:-g++}
flags=(-std=c++20 -O2 -g1 -fPIC -fvisibility=hidden -Wall -Wextra -Wno-unused-parameter
    -Wno-unknown-pragmas -Wno-attributes -Wno-psabi -march=native -ftls-model=global-dynamic
    -mtls-dialect=gnu2 -fno-extern-tls-init -Ikernels)
emulation=tests/cuda/emulation
