#!/bin/sh
# The steps of deploy/Containerfile, which run without a container too:
#   image.sh build SOURCE PREFIX MODEL BUCKETS TARGET
#       PREFIX/venv with the server and nothing to compile with, PREFIX/model.sparsec
#   image.sh serve [FLAGS]
#       what the container runs: the model beside this script, as the task in $SPARSEC_TASK
# PIP_ARGS are more arguments of pip, such as --no-index --find-links FOLDER.  WHEEL is the package to
# install, if it is not to be built from SOURCE.
set -eu

build() {
    source=$1 prefix=$2 model=$3 buckets=$4 target=$5
    : "${PYTHON:=python3}"
    mkdir -p "$prefix"
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    "$PYTHON" -m venv "$work/venv"
    wheel=${WHEEL:-}
    if [ -z "$wheel" ]; then
        # shellcheck disable=SC2086
        "$work/venv/bin/python" -m pip wheel -q ${PIP_ARGS:-} --no-deps -w "$work/wheels" "$source"
        wheel=$(echo "$work"/wheels/sparsec-*.whl)
    fi
    # shellcheck disable=SC2086
    "$work/venv/bin/python" -m pip install -q ${PIP_ARGS:-} "$wheel[compile]"
    "$work/venv/bin/sparsec" compile "$source/$model" --buckets "$buckets" --target "$target" \
        -o "$prefix/model.sparsec" -q
    "$PYTHON" -m venv --without-pip "$prefix/venv"
    # shellcheck disable=SC2086
    "$work/venv/bin/python" -m pip --python "$prefix/venv/bin/python" install -q ${PIP_ARGS:-} \
        "$wheel[serve]"
    # What Swagger UI's package brings for Flask, of which nothing runs.
    "$work/venv/bin/python" -m pip --python "$prefix/venv/bin/python" uninstall -q -y \
        flask jinja2 markupsafe werkzeug itsdangerous blinker
}

serve() {
    prefix=$(dirname "$0")
    exec sparsec serve --task "$SPARSEC_TASK" \
        --model-path "${SPARSEC_MODEL:-$prefix/model.sparsec}" --host 0.0.0.0 "$@"
}

command=$1
shift
"$command" "$@"
