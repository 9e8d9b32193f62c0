/**
 * Positions in the write-ahead log (LSN), which the server writes as two hexadecimal halves.
 */

/** Position of a server in the history of its cluster. */
export interface Position {
  readonly systemId: string
  /**
   * The timeline. It is `undefined` for a standby that is not streaming, or whose user may not read
   * the status of the WAL receiver.
   */
  readonly timeline: number | undefined
  readonly lsn: bigint
}

/** One run of a primary, from a start or a recovery to the next. */
export interface ServerRun {
  readonly systemId: string
  readonly timeline: number
  /** The start of the postmaster, in microseconds since 1970. */
  readonly startedAt: string
  /** The end of the last recovery; `undefined` after a clean start. */
  readonly recoveredTo: bigint | undefined
}

const form = /^[0-9A-Fa-f]{1,8}\/[0-9A-Fa-f]{1,8}$/

/** Checks if a text is a position. */
export const isLsn = (text: string): boolean => form.test(text)

/** Parses the text of a position. */
export const parseLsn = (text: string): bigint => {
  const [high = "", low = ""] = text.split("/")
  return (BigInt(`0x${high}`) << 32n) | BigInt(`0x${low}`)
}

/** Reads a position from a column; `undefined` if the column has none. */
export const toLsn = (column: unknown): bigint | undefined =>
  typeof column === "string" && isLsn(column) ? parseLsn(column) : undefined

/** Returns the timeline of a WAL file: the first eight digits of its name. */
export const timelineOf = (walFile: string): number => Number.parseInt(walFile.slice(0, 8), 16)

/** Returns the text of a position. */
export const formatLsn = (lsn: bigint): string =>
  `${(lsn >> 32n).toString(16).toUpperCase()}/${(lsn & 0xffff_ffffn).toString(16).toUpperCase()}`
