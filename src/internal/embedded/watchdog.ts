/**
 * The watchdog of a cluster: one or two shells that end the servers and remove the files, even
 * after a crash of Node.
 */
import * as net from "node:net"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as FiberId from "effect/FiberId"
import type * as Scope from "effect/Scope"
import { type Identity, launch, signal } from "./childProcess.js"
import { OperationFailed } from "./operationFailed.js"
import { withinRealTime } from "./realClock.js"

// A shell waits for the end of its input, which ends with Node, even if Node is killed.
const wait = `
trap '' HUP INT TERM
read -r _
[ -d "$1" ] || exit 0
`

/**
 * Shell function that empties the data folder of a server that has ended. The shared memory of a
 * killed server is named in its pid file.
 */
export const emptyFunction = `
empty() {
  if [ -f "$1/postmaster.pid" ]; then
    segment=$(sed -n '7s/^ *[0-9]* *//p' "$1/postmaster.pid" 2>/dev/null)
    [ -z "$segment" ] || ipcrm -m "$segment" 2>/dev/null
  fi
  rm -rf "$1"/* 2>/dev/null
  [ -z "$(ls -A "$1")" ] || { sleep 1; rm -rf "$1"/* "$1"/.[!.]*; }
}
`

// Ends the processes of the cluster, then empties its data folders. The processes are found by the
// name of the folder in their command lines (see markedProcesses.ts), so another process with a
// recycled id is never signalled. Servers get QUIT, and are killed after about 5 seconds. Other
// programs are killed at once: after another signal, initdb would remove the pid file, which names
// the shared memory of its own server.
const end = `${emptyFunction}
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
for data in "$1"/*; do
  [ -d "$data" ] && [ -O "$data" ] && [ "\${data##*/}" != native ] || continue
  empty "$data"
done
`

// Removes the folder of the cluster when its data folders are empty. It does not remove files in
// data folders, because root would follow links that the server's user has made there.
const sweep = `
tries=0
while [ -d "$1" ] && [ $tries -lt 100 ]; do
  tries=$((tries + 1))
  rm -rf "$1/native" "$1/pwfile"
  rmdir "$1"/* 2>/dev/null
  rmdir "$1" 2>/dev/null || sleep 0.1 2>/dev/null || sleep 1
done
`

const watch = (
  script: string,
  folder: string,
  user: Identity | undefined
): Effect.Effect<void, OperationFailed, Scope.Scope> =>
  Effect.acquireRelease(
    launch(
      "/bin/sh",
      ["-c", `${wait}${script}`, "effect-db-watchdog", folder],
      { cwd: "/", user, stdio: ["pipe", "ignore", "ignore"] },
      (child, pid) => {
        const ended = Deferred.unsafeMake<void>(FiberId.none)
        child.once("close", () => Deferred.unsafeDone(ended, Effect.void))
        child.unref()
        // otherwise the pipe alone would keep Node alive
        if (child.stdin instanceof net.Socket) child.stdin.unref()
        child.stdin?.on("error", () => {
          // another program has killed the shell, which is needed only if Node ends before the
          // scope is closed
        })
        return { end: Effect.sync(() => child.stdin?.end()), ended, pid }
      }
    ),
    ({ end, ended, pid }) =>
      end.pipe(
        Effect.zipRight(withinRealTime(ended, "15 seconds")),
        Effect.flatMap((done) => (done ? Effect.void : Effect.sync(() => signal(pid, "SIGKILL"))))
      )
  ).pipe(
    Effect.mapError((cause) => new OperationFailed({ operation: "install", reason: cause.reason, logs: [], cause })),
    Effect.asVoid
  )

/**
 * Starts a shell that ends the servers in `folder` and removes the folder. It does so when the
 * scope is closed or Node ends, even by SIGKILL. If the servers run as another user, a second shell
 * of that user ends the servers and empties their data folders.
 */
export const guard = (folder: string, user: Identity | undefined): Effect.Effect<void, OperationFailed, Scope.Scope> =>
  user === undefined
    ? watch(end + sweep, folder, undefined)
    : // finalizers run in reverse order: the servers end before the folder is removed
      Effect.zipRight(watch(sweep, folder, undefined), watch(end, folder, user))
