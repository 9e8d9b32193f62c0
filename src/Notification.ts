/**
 * The notifications of a channel: its messages, and the gaps in which messages may be missing.
 *
 * @since 0.1.0
 */
import * as Data from "effect/Data"

/**
 * Value of the stream `Db.listen(channel)`.
 *
 * PostgreSQL stores no notification for a listener that is not connected. A listener that must not
 * miss a row reads the tables through the writer, at `Listening` and at each `Gap`: earlier commits
 * are in the tables by then, and later ones arrive as messages.
 *
 * @see `Db.listen` for the stream and `Db.notify` to send
 * @since 0.1.0
 * @category models
 */
export type Notification = Data.TaggedEnum<{
  /** The first value: from here on every message arrives. */
  Listening: { readonly channel: string }
  /** A message, in the order of commits. `processId` is the backend process of its sender. */
  Message: { readonly channel: string; readonly payload: string; readonly processId: number }
  /**
   * Messages may be missing before this value; after it every message arrives again.
   *
   * - `disconnected`: the connection was lost, and another one listens now.
   * - `overflow`: the consumer was too slow, and messages did not fit into its buffer.
   */
  Gap: { readonly channel: string; readonly reason: "disconnected" | "overflow"; readonly message: string }
}>

/**
 * Constructors and matchers of the type {@link Notification}.
 *
 * @see `Db.listen` for the stream of them
 * @example
 * ```ts
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
 * ```
 *
 * @since 0.1.0
 * @category constructors
 */
export const Notification = Data.taggedEnum<Notification>()
