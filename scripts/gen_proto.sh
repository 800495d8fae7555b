#!/usr/bin/env bash
# Regenerates rewardsvc/v1 from proto/ into the folder given (default: the tree itself).
# The generator is an old one on purpose: see docs/adr/0002-stubs-from-an-old-protoc.md.
set -euo pipefail
cd "$(dirname "$0")/.."
out="${1:-.}"
bin="$(dirname "${PROTO_PYTHON:-.venv-proto/bin/python}")"
mkdir -p "$out/rewardsvc/v1"
PATH="$bin:$PATH" "$bin/python" -m grpc_tools.protoc -Iproto \
  --python_out="$out" --grpc_python_out="$out" \
  --mypy_out="quiet:$out" --mypy_grpc_out="quiet:$out" \
  proto/rewardsvc/v1/*.proto
