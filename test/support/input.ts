import * as Effect from "effect/Effect"

/** Waits for input of the process, and closes it: it keeps no process alive. */
export const input = Effect.async<void>((resume) => {
  process.stdin.once("data", () => {
    process.stdin.destroy()
    resume(Effect.void)
  })
})
