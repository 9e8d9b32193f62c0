#!/usr/bin/env bash
# npm run test:cluster: the core suites on an older PostgreSQL, Debian's 15, as a primary with a streaming replica, and what they
# become behind Debian's PgBouncer, 1.18, in transaction mode; the example service's page in Debian's Chromium; and `test:node`. Arguments,
# if there are any, are vitest's and replace the list of files.
#
# npm run test:soak: the storms, the outages and the fuzzer of protocol bytes on the same servers, at full length.
#
# POSTGRES_BIN      the folder of initdb, pg_ctl and pg_basebackup, where they are not Debian's
# PGBOUNCER         the program, where it is not Debian's
# CHROMIUM          the same
# PATRONI, ETCD, HAPROXY   the same
# VITEST_JSON       where a report in JSON goes; those of the other passes go beside it, to *.pooler.json, *.pooling.json and
#                   *.network.json
#
# Ends with 77 where PostgreSQL 15, PgBouncer, Chromium, Patroni, etcd or HAProxy is missing and cannot be installed.
set -euo pipefail
cd "$(dirname "$0")/.."

soak=""
if [ "${1:-}" = --soak ]; then
  soak=yes
  shift
fi
files=("$@")
# what needs no session of its own is to go on behind PgBouncer as it does without
pooled=()
if [ -n "$soak" ]; then
  export EFFECT_DB_CHAOS=full
  if [ $# -eq 0 ]; then
    files=(test/{chaos/{consistency,failover,frozen,modes,outage,pairs,requests,storm,twoPhase},pool/outage,protocol/frames,topology/{discovery,patroni},transaction/resolved}.test.ts)
  fi
elif [ $# -eq 0 ]; then
  for file in client/{database,copy,copyFrom,copyTo,migrations,readers,tenant,tenantNames,tenantSessions} config/connectionString \
    connection/{connection,hosts,pooler,poolerFaults,stalePlans} consistency/consistency ecosystem/{knownFailures,plainClient,sql} \
    listen/{listeners,lostConnection,notification,replacement} pool/pool service/page topology/{patroni,serverRole} \
    transaction/{transaction,streams,interrupted} unitOfWork/unitOfWork chaos/{storm,outage,consistency}; do
    files+=("test/$file.test.ts")
  done
  for file in transaction/{transaction,streams,commit} unitOfWork/unitOfWork http/requestTransaction client/testDatabase ecosystem/sql; do
    pooled+=("test/$file.test.ts")
  done
fi

bin=${POSTGRES_BIN:-/usr/lib/postgresql/15/bin}
pgbouncer=${PGBOUNCER:-/usr/sbin/pgbouncer}
chromium=${CHROMIUM:-/usr/bin/chromium}
patroni=${PATRONI:-/usr/bin/patroni}
etcd=${ETCD:-/usr/bin/etcd}
haproxy=${HAPROXY:-/usr/sbin/haproxy}

missing() {
  cat >&2 <<END
test/cluster.sh: PostgreSQL 15, PgBouncer, Chromium, Patroni, etcd or HAProxy is not at $bin, $pgbouncer, $chromium, $patroni, $etcd or $haproxy: $1.
On Debian 12, as root:  apt-get install postgresql-15 pgbouncer chromium patroni etcd-server haproxy nftables iproute2
Elsewhere install them and say where they are, by POSTGRES_BIN=/path/to/bin, and PGBOUNCER, CHROMIUM, PATRONI, ETCD and HAPROXY=/path/to/program
END
  exit 77
}

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

packages=()
if [ ! -x "$bin/initdb" ]; then
  if [ -n "${POSTGRES_BIN:-}" ]; then missing "there is no initdb"; fi
  packages+=(postgresql-15)
fi
# the program, its package, and its place, if it was given
want() {
  if [ -x "$1" ]; then return; fi
  if [ -n "$3" ]; then missing "there is no such program"; fi
  packages+=("$2")
}
want "$pgbouncer" pgbouncer "${PGBOUNCER:-}"
want "$chromium" chromium "${CHROMIUM:-}"
want "$patroni" patroni "${PATRONI:-}"
want "$etcd" etcd-server "${ETCD:-}"
want "$haproxy" haproxy "${HAPROXY:-}"
if ! command -v nft >/dev/null; then packages+=(nftables); fi
if ! command -v ip >/dev/null; then packages+=(iproute2); fi

if [ ${#packages[@]} -gt 0 ]; then
  if ! command -v apt-get >/dev/null; then missing "there is no apt-get to install it with"; fi
  if ! as_root true 2>/dev/null; then missing "only root can install it"; fi
  # no server beside those of the tests
  if [ ! -e /etc/postgresql-common/createcluster.conf ]; then
    as_root mkdir -p /etc/postgresql-common
    echo "create_main_cluster = false" | as_root tee /etc/postgresql-common/createcluster.conf >/dev/null
  fi
  if [ ! -e /usr/sbin/policy-rc.d ]; then
    no_services=/usr/sbin/policy-rc.d
    trap 'as_root rm -f "$no_services"' EXIT
    printf '#!/bin/sh\nexit 101\n' | as_root tee "$no_services" >/dev/null
    as_root chmod +x "$no_services"
  fi
  as_root apt-get update -q >&2 || missing "apt-get update failed"
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "${packages[@]}" >&2 ||
    missing "apt-get could not install ${packages[*]}"
  if [ -n "${no_services:-}" ]; then as_root rm -f "$no_services"; fi
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
  for name in bouncer-replica bouncer-primary; do
    if [ -s "$work/$name.pid" ]; then kill "$(cat "$work/$name.pid")" 2>/dev/null || true; fi
  done
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
autovacuum = off
timezone = UTC
END
primary=$(start primary)
# the primary keeps what the replica still needs: without a slot it may have recycled it, and then a replica never catches up
PGPASSWORD=$password as_server "$bin/pg_basebackup" -h 127.0.0.1 -p "$primary" -U postgres -D "$work/replica" \
  --create-slot --slot=replica --write-recovery-conf --wal-method=stream --checkpoint=fast --no-sync
replica=$(start replica)

# One PgBouncer in front of each server. Every database of the server is there, with few connections: clients have to share them. What a
# client may ask for at its login is what PgBouncer allows by itself.
start_bouncer() {
  local name=$1 server=$2 port tries=200
  port=$(free_port)
  cat >"$work/$name.ini" <<END
[databases]
* = host=127.0.0.1 port=$server
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = $port
unix_socket_dir =
auth_type = scram-sha-256
auth_file = $work/users
admin_users = postgres
pool_mode = transaction
default_pool_size = 5
max_client_conn = 2000
autodb_idle_timeout = 10
server_login_retry = 1
pidfile = $work/$name.pid
logfile = $work/$name.log
END
  as_server "$pgbouncer" -q -d "$work/$name.ini" >&2
  until (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do
    if [ $((tries -= 1)) = 0 ]; then
      cat "$work/$name.log" >&2
      return 1
    fi
    sleep 0.05
  done
  echo "$port"
}

(umask 077 && echo "\"postgres\" \"$password\"" >"$work/users" && chown "$user" "$work/users")
bouncer_primary=$(start_bouncer bouncer-primary "$primary")
bouncer_replica=$(start_bouncer bouncer-replica "$replica")

cd "$OLDPWD"
"$bin/postgres" --version
"$pgbouncer" --version | head -1
"$chromium" --version 2>/dev/null
"$patroni" --version
"$haproxy" -v | sed -n 1p
export EFFECT_DB_TEST_WRITER="postgres://postgres:$password@127.0.0.1:$primary/postgres"
export EFFECT_DB_TEST_READER="postgres://postgres:$password@127.0.0.1:$replica/postgres"
export EFFECT_DB_TEST_BOUNCER="postgres://postgres:$password@127.0.0.1:$bouncer_primary/postgres"
export EFFECT_DB_TEST_BOUNCER_READER="postgres://postgres:$password@127.0.0.1:$bouncer_replica/postgres"
# for tests that need one of their own
export EFFECT_DB_TEST_PGBOUNCER=$pgbouncer
export EFFECT_DB_TEST_CHROMIUM=$chromium
export EFFECT_DB_TEST_PATRONI=$patroni
export EFFECT_DB_TEST_ETCD=$etcd
export EFFECT_DB_TEST_HAPROXY=$haproxy
export EFFECT_DB_TEST_POSTGRES_BIN=$bin

run() {
  local report=$1 status=0
  shift
  # in the background, so that a signal is heard at once
  node_modules/.bin/vitest run --reporter=default --reporter=json --outputFile.json="$report" "$@" </dev/null &
  vitest=$!
  wait "$vitest" || status=$?
  vitest=""
  return "$status"
}

report=${VITEST_JSON:-$work/report.json}
status=0
run "$report" "${files[@]}" || status=$?
if [ ${#pooled[@]} -gt 0 ]; then
  echo "--- the promises of a pool, behind PgBouncer"
  run "${report%.json}.pooling.json" test/pool/{callers,idle,single,upkeep}.test.ts -t "behind PgBouncer" || status=$?
  echo "--- the same behind PgBouncer"
  export EFFECT_DB_TEST_WRITER="$EFFECT_DB_TEST_BOUNCER?pgbouncer=true"
  export EFFECT_DB_TEST_READER="$EFFECT_DB_TEST_BOUNCER_READER?pgbouncer=true"
  unset EFFECT_DB_TEST_BOUNCER EFFECT_DB_TEST_BOUNCER_READER
  run "${report%.json}.pooler.json" "${pooled[@]}" || status=$?
fi
if [ ${#pooled[@]} -gt 0 ] || [ -n "$soak" ]; then
  echo "--- dropped packets, in a network of their own"
  network=0
  env -u EFFECT_DB_TEST_WRITER -u EFFECT_DB_TEST_READER bash test/network.sh --reporter=json \
    --outputFile.json="${report%.json}.network.json" || network=$?
  # 77: the machine allows no network of its own
  if [ "$network" != 0 ] && [ "$network" != 77 ]; then status=$network; fi
fi
if [ ${#pooled[@]} -gt 0 ]; then
  echo "--- each version of Node"
  # in the background, so that a signal is heard at once
  env -u EFFECT_DB_TEST_WRITER -u EFFECT_DB_TEST_READER VITEST_JSON="$report" bash test/node.sh &
  vitest=$!
  wait "$vitest" || status=$?
  vitest=""
fi
# one that ended itself says why
if [ "$status" != 0 ]; then grep -h "FATAL @" "$work"/bouncer-*.log >&2 || true; fi
exit "$status"
