/**
 * The options of a unit of work, as its implementation reads them. The module `UnitOfWork` declares
 * and documents the same options for users.
 */
import * as Exit from "effect/Exit"
import type * as Schedule from "effect/Schedule"
import type { DatabaseError } from "../../DatabaseError.js"
import type { Settings, WorkLabel } from "../../Transaction.js"
import type { Describe } from "../statement/workLabel.js"
import { mergeSettings, type SettingsByDatabase } from "../transaction/settingsByDatabase.js"
import type { EndOptions } from "./commitOptions.js"

/** End of a unit. */
export type Outcome = "commit" | "rollback"

/** Settings for the transactions of all databases, and of single ones. */
export interface SettingsOptions {
  readonly transaction?: Settings | undefined
  readonly databases?: ReadonlyArray<{ readonly database: string; readonly settings: Settings }> | undefined
}

/** Options of a part that can fail alone. */
export interface NestedOptions<A, E> {
  readonly outcome?: ((exit: Exit.Exit<A, E>) => Outcome) | undefined
  readonly work?: WorkLabel | undefined
}

/** Options of a unit of work. */
export interface UnitOptions<A, E> extends NestedOptions<A, E>, SettingsOptions, EndOptions {
  readonly retry?: boolean | Schedule.Schedule<unknown, DatabaseError> | undefined
}

/** Returns the settings that the options have, if there are any. */
export const settingsByDatabase = ({ databases, transaction = {} }: SettingsOptions): SettingsByDatabase | undefined =>
  Object.keys(transaction).length === 0 && databases === undefined
    ? undefined
    : {
        all: transaction,
        databases: new Map(databases?.map(({ database, settings }) => [database, mergeSettings(transaction, settings)]))
      }

/** Returns the labels of the work, if it has any. */
export const describeWork = ({ work }: { readonly work?: WorkLabel | undefined }): Describe | undefined =>
  work === undefined ? undefined : () => work

/**
 * Decides the outcome of a unit by the function in its options. Without one, success commits and
 * failure rolls back. If the function throws, the unit is rolled back, and the exception is its
 * failure.
 */
export const decide = <A, E>(options: NestedOptions<A, E>, exit: Exit.Exit<A, E>): Exit.Exit<Outcome> => {
  try {
    return Exit.succeed(options.outcome?.(exit) ?? (Exit.isSuccess(exit) ? "commit" : "rollback"))
  } catch (defect) {
    return Exit.die(defect)
  }
}
