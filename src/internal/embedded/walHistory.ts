/**
 * The comparison of the WAL of two servers. A server can continue with the WAL of a primary unless
 * it has WAL that the primary does not have.
 */
import * as path from "node:path"
import * as Effect from "effect/Effect"
import * as Files from "./noFollowFiles.js"

/** Timeline that ended with a promotion, and the position of its end. */
interface EndedTimeline {
  readonly timeline: number
  readonly end: bigint
}

/** The size of the files of the WAL: initdb is run without another one. */
const segmentSize = 0x100_0000n
const segmentsPerFile = 0x1_0000_0000n / segmentSize

const hex = (n: bigint | number) => n.toString(16).toUpperCase().padStart(8, "0")

/** Parses the file of a timeline's history. Each line is an earlier timeline and its end. */
export const parseHistory = (text: string): ReadonlyArray<EndedTimeline> =>
  text.split("\n").flatMap((line) => {
    const [, timeline, high, low] = /^\s*(\d+)\s+([0-9A-F]+)\/([0-9A-F]+)/i.exec(line) ?? []
    return timeline === undefined
      ? []
      : [{ timeline: Number(timeline), end: (BigInt(`0x${high}`) << 32n) | BigInt(`0x${low}`) }]
  })

/** Returns the name of the file with the WAL before a position, and the length up to the position. */
export const fileBefore = (lsn: bigint, history: ReadonlyArray<EndedTimeline>, current: number) => {
  const segment = (lsn - 1n) / segmentSize
  const timeline = history.find(({ end }) => lsn <= end)?.timeline ?? current
  return {
    name: hex(timeline) + hex(segment / segmentsPerFile) + hex(segment % segmentsPerFile),
    length: Number(lsn - segment * segmentSize)
  }
}

/**
 * Checks if the WAL in the data folder `data`, which ends at `lsn`, is a part of the WAL of a
 * primary.
 *
 * Bytes are compared, because two servers that are promoted independently give their timelines the
 * same number. The last file is enough: a promotion writes its time into the WAL, and the WAL of
 * different transactions differs.
 */
export const isPartOf = (
  data: string,
  lsn: bigint,
  primary: { readonly data: string; readonly timeline: number }
): Effect.Effect<boolean> =>
  Effect.gen(function* () {
    const history = yield* Files.read(path.join(primary.data, "pg_wal", `${hex(primary.timeline)}.history`))
    const { length, name } = fileBefore(lsn, parseHistory(history?.toString() ?? ""), primary.timeline)
    const [own, other] = yield* Effect.all([
      Files.read(path.join(data, "pg_wal", name), length),
      Files.read(path.join(primary.data, "pg_wal", name), length)
    ])
    return length > 0 && own !== undefined && other !== undefined && own.equals(other)
  })
