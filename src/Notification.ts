/**
 * What a listener hears of a channel: its messages, and that some may have been missed.
 *
 * @since 0.1.0
 */
import * as Data from "effect/Data"

/**
 * One value of `Db.listen(channel)`.
 *
 * NOTIFY keeps nothing for those who are not there, so a listener that must not miss a row looks at the tables, by way of the writer, at
 * `Listening` and at each `Gap`: what was committed before is in the tables by then, what is committed later comes as a message.
 *
 * @since 0.1.0
 * @category models
 */
export type Notification = Data.TaggedEnum<{
  /** The first value: from here on every message is heard. */
  Listening: { readonly channel: string }
  /** A message, in the order of commits. `processId` is of the server's process that sent it. */
  Message: { readonly channel: string; readonly payload: string; readonly processId: number }
  /**
   * Messages may have been missed before this, and from here on every one is heard again.
   *
   * - `disconnected`: the connection was lost; it is made anew, and listens.
   * - `overflow`: the consumer was too slow, and what did not fit into its buffer was dropped.
   */
  Gap: { readonly channel: string; readonly reason: "disconnected" | "overflow"; readonly message: string }
}>

/**
 * Constructors and matchers of {@link Notification}.
 *
 * @example
 * import { Effect, Stream } from "effect"
 * import { Database, Notification } from "effect-db"
 *
 * class Db extends Database.Service<Db>()("app") {}
 *
 * declare const readAll: Effect.Effect<void, never, Db>
 * declare const readOne: (id: string) => Effect.Effect<void, never, Db>
 *
 * export const follow = Db.listen("todo").pipe(
 *   Stream.runForEach(Notification.Notification.$match({
 *     Listening: () => readAll,
 *     Gap: () => readAll,
 *     Message: ({ payload }) => readOne(payload)
 *   }))
 * )
 *
 * @since 0.1.0
 * @category constructors
 */
export const Notification = Data.taggedEnum<Notification>()
