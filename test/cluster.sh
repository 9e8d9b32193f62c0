#!/usr/bin/env bash
# npm run test:cluster: the core suites on an older PostgreSQL, Debian's 15, as a primary with a streaming replica.
#
# POSTGRES_BIN      the folder of initdb, pg_ctl and pg_basebackup, where they are not Debian's
# VITEST_JSON       where a report in JSON goes
#
# Ends with 77 where PostgreSQL 15 is missing and cannot be installed.
set -euo pipefail
cd "$(dirname "$0")/.."

files=()
for file in Database Connection Pool Transaction UnitOfWork known-failures plain-client ecosystem; do
  if [ -e "test/$file.test.ts" ]; then files+=("test/$file.test.ts"); fi
done
if [ ${#files[@]} -eq 0 ]; then
  echo "test/cluster.sh: none of its test files exists" >&2
  exit 1
fi

bin=${POSTGRES_BIN:-/usr/lib/postgresql/15/bin}

missing() {
  cat >&2 <<END
test/cluster.sh: PostgreSQL 15 is not at $bin: $1.
On Debian 12, as root:  apt-get install postgresql-15
Elsewhere install PostgreSQL 15 and say where it is:  POSTGRES_BIN=/path/to/bin npm run test:cluster
END
  exit 77
}

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

if [ ! -x "$bin/initdb" ]; then
  if [ -n "${POSTGRES_BIN:-}" ]; then missing "there is no initdb"; fi
  if ! command -v apt-get >/dev/null; then missing "there is no apt-get to install it with"; fi
  if ! as_root true 2>/dev/null; then missing "only root can install it"; fi
  # no server that nobody asked for
  if [ ! -e /etc/postgresql-common/createcluster.conf ]; then
    as_root mkdir -p /etc/postgresql-common
    echo "create_main_cluster = false" | as_root tee /etc/postgresql-common/createcluster.conf >/dev/null
  fi
  as_root apt-get update -q >&2 || missing "apt-get update failed"
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends postgresql-15 >&2 ||
    missing "apt-get could not install postgresql-15"
fi

# a server refuses to run as root
if [ "$(id -u)" = 0 ]; then
  user=postgres
  getent passwd postgres >/dev/null || user=nobody
  as_server() { runuser -u "$user" -- "$@"; }
else
  user=$(id -un)
  as_server() { "$@"; }
fi

# in memory, if there is room: a disk takes twice as long
temp=${TMPDIR:-/tmp}
if [ -w /dev/shm ] && [ "$(df --output=avail -k /dev/shm | tail -1)" -gt 1048576 ]; then temp=/dev/shm; fi
work=$(mktemp -d "$temp/effect-db-cluster-XXXXXX")

clean() {
  trap - EXIT INT TERM HUP
  if [ -n "${vitest:-}" ]; then
    kill "$vitest" 2>/dev/null || true
    wait "$vitest" || true
  fi
  for name in replica primary; do
    if [ -e "$work/$name/postmaster.pid" ]; then
      as_server "$bin/pg_ctl" -D "$work/$name" -m immediate -w stop >/dev/null || true
    fi
  done
  rm -rf "$work"
}
trap clean EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

chown "$user" "$work"
cd "$work"

free_port() {
  node -e 'const s = require("net").createServer().listen(0, "127.0.0.1", () => { console.log(s.address().port); s.close() })'
}

start() {
  local name=$1 port
  port=$(free_port)
  if ! as_server "$bin/pg_ctl" -D "$work/$name" -l "$work/$name.log" -w -o "-p $port" start >"$work/start.log"; then
    cat "$work/start.log" "$work/$name.log" >&2
    return 1
  fi
  echo "$port"
}

password=$(node -p 'require("crypto").randomBytes(16).toString("hex")')
(umask 077 && echo "$password" >"$work/password" && chown "$user" "$work/password")
as_server "$bin/initdb" -D "$work/primary" -U postgres --pwfile="$work/password" --auth=scram-sha-256 \
  --encoding=UTF8 --locale=C --no-sync --no-instructions >/dev/null
cat >>"$work/primary/postgresql.conf" <<END
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
dynamic_shared_memory_type = mmap
max_connections = 300
max_prepared_transactions = 20
fsync = off
timezone = UTC
END
primary=$(start primary)
PGPASSWORD=$password as_server "$bin/pg_basebackup" -h 127.0.0.1 -p "$primary" -U postgres -D "$work/replica" \
  --write-recovery-conf --wal-method=stream --checkpoint=fast --no-sync
replica=$(start replica)

cd "$OLDPWD"
"$bin/postgres" --version
export EFFECT_DB_TEST_WRITER="postgres://postgres:$password@127.0.0.1:$primary/postgres"
export EFFECT_DB_TEST_READER="postgres://postgres:$password@127.0.0.1:$replica/postgres"
# in the background, so that a signal is heard at once
node_modules/.bin/vitest run --reporter=default --reporter=json --outputFile.json="${VITEST_JSON:-$work/report.json}" \
  "${files[@]}" </dev/null &
vitest=$!
status=0
wait "$vitest" || status=$?
vitest=""
exit "$status"
