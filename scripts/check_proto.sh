#!/usr/bin/env bash
# Fails if rewardsvc/v1 is not what proto/ generates.
set -euo pipefail
cd "$(dirname "$0")/.."
fresh="$(mktemp -d)"
trap 'rm -rf "$fresh"' EXIT
scripts/gen_proto.sh "$fresh"
if ! diff -r --exclude=__pycache__ --exclude=__init__.py "$fresh/rewardsvc/v1" rewardsvc/v1; then
  echo "rewardsvc/v1 differs from what proto/ generates; run 'make proto' and commit the result" >&2
  exit 1
fi
