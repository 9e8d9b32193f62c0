import { Effect } from "effect"

const width = 30

const count = (n: number) => n.toLocaleString("en")

/** Makes a display of progress: a bar on a terminal, else a line for each quarter. The end of the scope ends the line of the bar. */
export const make = (label: string, out: NodeJS.WriteStream) =>
  Effect.acquireRelease(
    Effect.sync(() => {
      let quarters = 0
      let drawn = false
      const draw = (rows: number, share: number) => {
        const full = Math.round(share * width)
        drawn = true
        out.write(`\r${label} [${"#".repeat(full)}${"-".repeat(width - full)}] ${count(rows)} rows`)
      }
      const tell = (rows: number, share: number) => {
        const reached = Math.floor(share * 4)
        if (reached <= quarters) return
        quarters = reached
        out.write(`${label} ${reached * 25} % ${count(rows)} rows\n`)
      }
      return {
        advance: (rows: number, share: number) =>
          Effect.sync(() => (out.isTTY ? draw : tell)(rows, Math.min(share, 1))),
        end: () => {
          if (drawn) out.write("\n")
        }
      }
    }),
    ({ end }) => Effect.sync(end)
  )
