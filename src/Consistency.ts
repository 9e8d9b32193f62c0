/**
 * What a read must see.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Data from "effect/Data"

/**
 * - `Strong`: what the primary has committed; read there.
 * - `ReadYourWrites` (default): at least what this unit of work has written.
 * - `Eventual`: whatever a replica has.
 *
 * @since 0.1.0
 * @category models
 */
export type Consistency = Data.TaggedEnum<{
  Strong: {}
  ReadYourWrites: {}
  Eventual: {}
}>

/**
 * @since 0.1.0
 * @category constructors
 */
export const { Eventual, ReadYourWrites, Strong } = Data.taggedEnum<Consistency>()

/**
 * The consistency in force, by the key of the database; set with `Db.withConsistency`.
 *
 * @since 0.1.0
 * @category services
 */
export class CurrentConsistency extends Context.Reference<CurrentConsistency>()("effect-db/Consistency", {
  defaultValue: (): ReadonlyMap<string, Consistency> => new Map()
}) {}
