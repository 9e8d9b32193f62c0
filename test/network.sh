#!/usr/bin/env bash
# The tests that drop packets, in a network namespace of their own, which needs root and nft. Ends with 77 if one is missing.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! command -v nft >/dev/null || ! command -v ip >/dev/null; then
  echo "test/network.sh: nft or ip is missing: on Debian 12, as root:  apt-get install nftables iproute2" >&2
  exit 77
fi
if ! unshare --net nft add table inet try 2>/dev/null; then
  echo "test/network.sh: only root can make a network namespace, and the machine must allow rules in it" >&2
  exit 77
fi

# the program has no other server than those that it starts
export EFFECT_DB_TEST_NETWORK=own
exec unshare --net bash -c 'ip link set lo up && exec node_modules/.bin/vitest run "$@"' network \
  --reporter=default "$@" test/topology/droppedPackets.test.ts
