/**
 * Positions in the write-ahead log (LSN), which the server writes as two hexadecimal halves.
 */

/** Position of a server in the history of its cluster. */
export interface Position {
  readonly systemId: string
  /**
   * Unknown for a standby if its user may not see the primary, or if it does not stream from one
   * now.
   */
  readonly timeline: number | undefined
  readonly lsn: bigint
}

const form = /^[0-9A-Fa-f]{1,8}\/[0-9A-Fa-f]{1,8}$/

export const isLsn = (text: string): boolean => form.test(text)

export const parseLsn = (text: string): bigint => {
  const [high = "", low = ""] = text.split("/")
  return (BigInt(`0x${high}`) << 32n) | BigInt(`0x${low}`)
}

export const formatLsn = (lsn: bigint): string =>
  `${(lsn >> 32n).toString(16).toUpperCase()}/${(lsn & 0xffff_ffffn).toString(16).toUpperCase()}`
