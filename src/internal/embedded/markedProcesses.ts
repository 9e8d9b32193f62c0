/**
 * The processes of an embedded server, and signals to all of them.
 *
 * The command line of each process contains the mark of the server. The postmaster has the mark in
 * the path of its data folder. Its children have it in `cluster_name`, which is a part of their
 * titles. Unlike the id of the parent, the mark does not change when the postmaster ends. Unlike
 * the working directory, every user can read it.
 */
import { execFileSync } from "node:child_process"
import * as fs from "node:fs"
import * as Effect from "effect/Effect"
import { signal } from "./childProcess.js"
import { toItsEnd, withRealClock } from "./realClock.js"

/** Returns the mark of a server: the end of the path of its data folder, and its `cluster_name`. */
export const mark = (data: string): string => data.split("/").slice(-2).join("/")

/** Process of an embedded server. */
interface Member {
  readonly pid: number
  readonly state: string
  readonly command: string
}

const fromProc = (pid: string): ReadonlyArray<Member> => {
  try {
    const stat = fs.readFileSync(`/proc/${pid}/stat`, "utf8")
    if (!stat.includes("(postgres)")) return []
    const state = stat.slice(stat.lastIndexOf(")") + 2)
    return [{ pid: Number(pid), state, command: fs.readFileSync(`/proc/${pid}/cmdline`, "utf8") }]
  } catch {
    // the process has ended since the listing
    return []
  }
}

const fromPs = (): ReadonlyArray<Member> =>
  execFileSync("ps", ["-A", "-o", "pid=", "-o", "state=", "-o", "command="], { encoding: "utf8" })
    .split("\n")
    .flatMap((line) => {
      const [, pid, state, command] = /^\s*(\d+)\s+(\S+)\s+((?:\S*\/)?postgres:? .*)$/.exec(line) ?? []
      return pid === undefined || state === undefined || command === undefined
        ? []
        : [{ pid: Number(pid), state, command }]
    })

/** Returns the running processes of the server in `data`. */
export const members = (data: string): ReadonlyArray<Member> => {
  const all =
    process.platform === "linux"
      ? fs
          .readdirSync("/proc")
          .filter((name) => /^\d+$/.test(name))
          .flatMap(fromProc)
      : fromPs()
  // the mark of replica-1 must not match replica-10
  const marked = new RegExp(`${mark(data)}(?!\\d)`)
  return all.filter((member) => marked.test(member.command))
}

// A zombie, which the parent has not reaped yet, counts as suspended.
const isSuspended = (member: Member): boolean => /^[TtZX]/.test(member.state)

/**
 * Suspends all processes. The postmaster is suspended first, so that it starts no child meanwhile.
 * Returns true when all are suspended, or false if some are not after `tries` checks, which take
 * about a second.
 */
export const freeze = (postmaster: number, data: string, tries = 500): Effect.Effect<boolean> =>
  Effect.suspend(() => {
    signal(postmaster, "SIGSTOP")
    const running = members(data).filter((member) => !isSuspended(member))
    for (const member of running) signal(member.pid, "SIGSTOP")
    if (running.length === 0 || tries === 0) return Effect.succeed(running.length === 0)
    // polled: a process stops when it next enters the kernel, and only its state shows that
    return Effect.zipRight(withRealClock(Effect.sleep("1 millis")), freeze(postmaster, data, tries - 1))
  })

/** Continues all processes, the postmaster last. */
export const thaw = (postmaster: number, data: string): Effect.Effect<void> =>
  Effect.sync(() => {
    const found = members(data)
    for (const member of found) if (member.pid !== postmaster) signal(member.pid, "SIGCONT")
    for (const member of found) if (member.pid === postmaster) signal(member.pid, "SIGCONT")
  })

const isGone = (pid: number): boolean => {
  if (process.platform !== "linux") return !signal(pid, 0)
  try {
    // a zombie counts as gone: containers often have no init that reaps orphans
    return /\) [ZX]/.test(fs.readFileSync(`/proc/${pid}/stat`, "utf8"))
  } catch {
    return true
  }
}

const awaitGone = (pids: ReadonlyArray<number>): Effect.Effect<void> =>
  Effect.suspend(() => {
    const remaining = pids.filter((pid) => !isGone(pid))
    // polled: the processes are no children of this one, so their exit emits no event
    return remaining.length === 0 ? Effect.void : Effect.zipRight(Effect.sleep("1 millis"), awaitGone(remaining))
  })

/** Kills all processes, even frozen and orphaned ones, and waits up to 5 seconds for their end. */
export const kill = (postmaster: number, data: string): Effect.Effect<void> =>
  Effect.suspend(() => {
    // the postmaster is suspended first, because it starts other children when one dies
    for (const { pid } of members(data)) if (pid === postmaster) signal(pid, "SIGSTOP")
    const pids = members(data).map((member) => member.pid)
    // the whole process group is killed, because a process may run a command
    for (const pid of pids) if (!signal(-pid, "SIGKILL")) signal(pid, "SIGKILL")
    // the wait has a limit, because the kernel may need long to end the killed processes
    return awaitGone(pids).pipe(Effect.timeout("5 seconds"), Effect.ignore, withRealClock, toItsEnd)
  })
