import { execFileSync } from "node:child_process"
import * as fs from "node:fs"
import * as Effect from "effect/Effect"
import { signal } from "./childProcess.js"
import { withRealClock } from "./realClock.js"

// A server's processes carry its mark in their command lines: the postmaster as its data folder, the children as
// `cluster_name` in their titles. Unlike the parent's id it is still there when the postmaster is not, and unlike the
// working directory every user may read it.

/** The mark of a server, for its `cluster_name`; its data folder ends in it too. */
export const mark = (data: string): string => data.split("/").slice(-2).join("/")

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
    // it ended between the listing and the reading
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

/** The processes of the server in `data`, as far as they run. */
export const members = (data: string): ReadonlyArray<Member> => {
  const all =
    process.platform === "linux"
      ? fs
          .readdirSync("/proc")
          .filter((name) => /^\d+$/.test(name))
          .flatMap(fromProc)
      : fromPs()
  // replica-1 is no replica-10
  const marked = new RegExp(`${mark(data)}(?!\\d)`)
  return all.filter((member) => marked.test(member.command))
}

// stopped, or dead and not fetched by its parent yet
const isStopped = (member: Member): boolean => /^[TtZX]/.test(member.state)

/**
 * Stops every process, the postmaster first so that no child is born meanwhile. Ends when all of them stand still,
 * with `false` where some did not within about a second.
 */
export const freeze = (postmaster: number, data: string, tries = 500): Effect.Effect<boolean> =>
  Effect.suspend(() => {
    signal(postmaster, "SIGSTOP")
    const moving = members(data).filter((member) => !isStopped(member))
    for (const member of moving) signal(member.pid, "SIGSTOP")
    if (moving.length === 0 || tries === 0) return Effect.succeed(moving.length === 0)
    // a process notices the signal when it next enters the kernel; its state is the only place that tells
    return Effect.zipRight(withRealClock(Effect.sleep("1 millis")), freeze(postmaster, data, tries - 1))
  })

/** Lets every process go on, the postmaster last. */
export const thaw = (postmaster: number, data: string): Effect.Effect<void> =>
  Effect.sync(() => {
    const found = members(data)
    for (const member of found) if (member.pid !== postmaster) signal(member.pid, "SIGCONT")
    for (const member of found) if (member.pid === postmaster) signal(member.pid, "SIGCONT")
  })

const isGone = (pid: number): boolean => {
  if (process.platform !== "linux") return !signal(pid, 0)
  try {
    // dead, and nobody fetches it: containers often have no init that would
    return /\) [ZX]/.test(fs.readFileSync(`/proc/${pid}/stat`, "utf8"))
  } catch {
    return true
  }
}

const awaitGone = (pids: ReadonlyArray<number>): Effect.Effect<void> =>
  Effect.suspend(() => {
    const left = pids.filter((pid) => !isGone(pid))
    // they are nobody's children any more, so no event tells
    return left.length === 0 ? Effect.void : Effect.zipRight(Effect.sleep("1 millis"), awaitGone(left))
  })

/** Kills every process, frozen and orphaned ones too, and waits, within a bound, until they are gone. */
export const kill = (postmaster: number, data: string): Effect.Effect<void> =>
  Effect.suspend(() => {
    // held first: a postmaster that sees a child die would start others
    for (const { pid } of members(data)) if (pid === postmaster) signal(pid, "SIGSTOP")
    const pids = members(data).map((member) => member.pid)
    // each leads a group, in which there may be a command that it runs
    for (const pid of pids) if (!signal(-pid, "SIGKILL")) signal(pid, "SIGKILL")
    return awaitGone(pids).pipe(Effect.interruptible, Effect.timeout("5 seconds"), Effect.ignore, withRealClock)
  })
