/**
 * LISTEN in a sandbox. The server sends notifications at COMMIT, which a sandbox never has, so the
 * notifications of a sandbox are delivered here, and no connection listens.
 */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { Executor } from "../client/executor.js"
import { onSandboxNotification } from "../client/sandboxNotifications.js"
import { type Listener, Listeners } from "./listeners.js"
import { type Listen, type ListenerRegistry, makeStreams } from "./streams.js"

/** Registry of the listeners of a sandbox. They listen from the moment they are added. */
class SandboxListeners implements ListenerRegistry {
  readonly listeners = new Listeners()

  add(listener: Listener): void {
    this.listeners.add(listener)
    listener.onListening()
  }

  remove(listener: Listener): void {
    this.listeners.remove(listener)
  }
}

/** Creates the streams of notifications in a sandbox. */
export const makeSandboxListen = (executor: Executor): Effect.Effect<Listen, never, Scope.Scope> =>
  Effect.gen(function* () {
    const { database, observer } = executor
    const registry = yield* Effect.acquireRelease(
      Effect.sync(() => new SandboxListeners()),
      ({ listeners }) => Effect.sync(() => listeners.failAll({ _tag: "Closed" }))
    )
    const reports = {
      overflowed: (channel: string) => {
        if (observer.active) observer.observe({ _tag: "ListenOverflowed", database, channel })
      }
    }
    if (executor.sandbox !== undefined)
      onSandboxNotification(executor.sandbox, ({ channel, payload }, processId) =>
        registry.listeners.deliver(channel, payload, processId, reports)
      )
    return { ...makeStreams(executor, registry), invalidate: () => 0 }
  })
