#!/usr/bin/env bash
# npm run check: everything that is proved without running the library. Changes nothing but dist, and stops at the first failure.
set -euo pipefail
cd "$(dirname "$0")/../.."
export PATH="$PWD/node_modules/.bin:$PATH"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

step() {
  local name=$1 start=$SECONDS
  shift
  echo "--- $name"
  if ! "$@"; then
    echo "--- $name: FAILED" >&2
    exit 1
  fi
  echo "--- $name: ok, $((SECONDS - start)) s"
}

# what is looked at is what would be published: packing builds it
pack() {
  npm pack --silent --pack-destination "$work" && mv "$work"/*.tgz "$work/package.tgz"
}

# every module by name, for a wildcard in "exports" is not looked into; the table is of use only where something is wrong
attw_modules() {
  local modules
  modules=$(cd src && printf './%s\n' *.ts | grep -v '^./index.ts$' | sed 's/\.ts$//')
  # shellcheck disable=SC2086 # one argument each
  attw --profile esm-only --include-entrypoints $modules -- "$work/package.tgz" >"$work/attw.txt" || {
    cat "$work/attw.txt"
    return 1
  }
}

step "types" tsc -p tsconfig.json
step "types of the service's page" tsc -p examples/service/page/tsconfig.json
step "lint and format" biome check --error-on-warnings .
step "unused code and dependencies" knip --treat-config-hints-as-errors
step "docstrings" node --import tsx test/check/docstrings.ts
step "examples in the documentation" node --import tsx test/check/docs.ts
step "prose" node --import tsx test/check/prose.ts
step "build" pack
step "package: publint" publint --strict "$work/package.tgz"
step "package: attw" attw_modules
step "import time" node --import tsx test/check/import-time.ts
