import * as net from "node:net"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as FiberId from "effect/FiberId"
import type * as Scope from "effect/Scope"
import { launch, signal } from "./command.js"
import { EmbeddedPostgresError } from "./error.js"
import { within } from "./live.js"

// Reads the end of its input when node is gone, however it went. The cluster's processes are found by the folder's
// name in their command lines (see family.ts), so a stranger with a recycled process id is never hit. A
// server ends by itself when it is told; tools are killed, since initdb would first remove the pid file that names the
// shared memory of its own server.
const script = `
trap '' HUP INT TERM
read -r _
[ -d "$1" ] || exit 0
marker=\${1##*/}
members() {
  if [ -r /proc/self/cmdline ]; then
    grep -lF "$marker" /proc/[0-9]*/cmdline 2>/dev/null | while read -r file; do
      pid=\${file#/proc/}
      pid=\${pid%/cmdline}
      read -r name 2>/dev/null <"/proc/$pid/comm" || continue
      case "$name" in postgres | initdb | cp) echo "$pid $name" ;; esac
    done
  else
    ps -A -o pid= -o command= | grep -F "$marker" | while read -r pid name _; do
      case "\${name##*/}" in postgres | postgres: | initdb | cp) echo "$pid \${name##*/}" ;; esac
    done
  fi
}
send() {
  members | while read -r pid name; do
    case "$name" in postgres*) signal=$1 ;; *) signal=KILL ;; esac
    kill "-$signal" "-$pid" 2>/dev/null || kill "-$signal" "$pid" 2>/dev/null
  done
}
send QUIT
send CONT
tries=0
while [ -n "$(members)" ] && [ $tries -lt 50 ]; do
  tries=$((tries + 1))
  sleep 0.1 2>/dev/null || sleep 1
done
send KILL
for file in "$1"/*/postmaster.pid; do
  segment=$(sed -n '7s/^ *[0-9]* *//p' "$file" 2>/dev/null)
  [ -z "$segment" ] || ipcrm -m "$segment" 2>/dev/null
done
rm -rf "$1" 2>/dev/null || { sleep 1; rm -rf "$1"; }
`

/**
 * A small shell beside node that ends the cluster in `folder` and removes it when node dies without doing so,
 * even by SIGKILL. It ends with the scope.
 */
export const guard = (folder: string): Effect.Effect<void, EmbeddedPostgresError, Scope.Scope> =>
  Effect.acquireRelease(
    launch(
      "/bin/sh",
      ["-c", script, "effect-db-watchdog", folder],
      { cwd: "/", stdio: ["pipe", "ignore", "ignore"] },
      (child, pid) => {
        const ended = Deferred.unsafeMake<void>(FiberId.none)
        child.once("close", () => Deferred.unsafeDone(ended, Effect.void))
        child.unref()
        // else the pipe alone would keep node alive
        if (child.stdin instanceof net.Socket) child.stdin.unref()
        child.stdin?.on("error", () => {
          // it was killed by somebody; what it guards against has to happen as well before that matters
        })
        return { end: Effect.sync(() => child.stdin?.end()), ended, pid }
      }
    ),
    ({ end, ended, pid }) =>
      end.pipe(
        Effect.zipRight(within(ended, "15 seconds")),
        Effect.flatMap((done) => (done ? Effect.void : Effect.sync(() => signal(pid, "SIGKILL"))))
      )
  ).pipe(
    Effect.mapError(
      (cause) => new EmbeddedPostgresError({ operation: "install", reason: cause.reason, logs: [], cause })
    ),
    Effect.asVoid
  )
