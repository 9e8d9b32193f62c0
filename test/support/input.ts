import * as Effect from "effect/Effect"

/** Waits for data on standard input, and then closes it: open, it keeps the process alive. */
export const input = Effect.async<void>((resume) => {
  process.stdin.once("data", () => {
    process.stdin.destroy()
    resume(Effect.void)
  })
})
