#!/bin/sh
# What a lent machine with PyTorch but without a network lacks, as wheels for its Python, in the versions that we test with.
# Usage: benchmarks/gpu/wheels.sh [FOLDER]; git ignores the folder `wheels`.
set -eu
here=$(dirname "$0")
folder=${1:-$here/../../wheels}
python=${PYTHON_VERSION:-3.12}
rm -rf "$folder"
mkdir -p "$folder"
for name in msgspec orjson httptools pydantic pydantic_core annotated-types typing-inspection typing_extensions \
    starlette uvicorn uvloop highspy nvidia-ml-py; do
    pin=$(grep -i "^$name==" "$here/../../constraints.txt")
    set -- --platform manylinux1_x86_64 --platform manylinux2014_x86_64
    for libc in 17 24 26 27 28 31 34; do
        set -- "$@" --platform "manylinux_2_${libc}_x86_64"
    done
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --implementation cp \
        --python-version "$python" "$@" --dest "$folder" "$pin"
done
ls "$folder"
