/** Messages by name, between a test and the handlers of a server in the same process. */
import * as Effect from "effect/Effect"

interface Letter {
  readonly arrived: Promise<unknown>
  readonly deliver: (content: unknown) => void
}

const letters = new Map<string, Letter>()

const letter = (name: string): Letter => {
  let known = letters.get(name)
  if (known === undefined) {
    let deliver: Letter["deliver"] = () => {}
    const arrived = new Promise<unknown>((resolve) => {
      deliver = resolve
    })
    known = { arrived, deliver }
    letters.set(name, known)
  }
  return known
}

/** Sends a message to its present or future receiver. */
export const tell = (name: string, content?: unknown): void => letter(name).deliver(content)

/** Waits for a message. */
export const hear = (name: string): Promise<unknown> => letter(name).arrived

const meetings = new Map<string, Array<() => void>>()

/** Waits until `count` calls with this name wait, and then lets all of them continue. */
export const meet = (name: string, count: number): Promise<void> =>
  new Promise((resolve) => {
    const here = [...(meetings.get(name) ?? []), resolve]
    meetings.set(name, here.length < count ? here : [])
    if (here.length === count) for (const go of here) go()
  })

export const telling = (name: string, content?: unknown): Effect.Effect<void> => Effect.sync(() => tell(name, content))

export const hearing = (name: string): Effect.Effect<unknown> => Effect.promise(() => hear(name))
