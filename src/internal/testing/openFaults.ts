/**
 * The opening of a database whose sockets let faults happen.
 */
import type * as Reactivity from "@effect/experimental/Reactivity"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { type Database, reopen } from "../../Database.js"
import { ConfigInvalid, type StartupError } from "../../DatabaseError.js"
import type { Faults } from "../../Fault.js"
import type { ServerConfig } from "../../ServerConfig.js"
import { FaultRules } from "./faultRules.js"
import { FaultSocket } from "./faultSocket.js"
import { makeFaults } from "./faults.js"

/** The rules of faults, by the function that wraps sockets: a copy of a database has the same one. */
const rulesOf = new WeakMap<object, FaultRules>()

/** Opens a database with the settings of another one, and with faults. */
export const openWithFaults = (
  live: Database
): Effect.Effect<Database, StartupError, Reactivity.Reactivity | Scope.Scope> =>
  Effect.gen(function* () {
    const { config, database, sandbox } = live.executor
    if (sandbox !== undefined) {
      const expected = "a database with connections of its own: put the sandbox over the faults"
      return yield* new ConfigInvalid({ database, setting: "TestDatabase.layerFaults", given: "a sandbox", expected })
    }
    const rules = new FaultRules()
    // the cast: FaultSocket has all members of a socket that the driver and the watchdog use
    const intercept: NonNullable<ServerConfig["intercept"]> = (socket, host) =>
      new FaultSocket(socket, host, rules) as never
    rulesOf.set(intercept, rules)
    return yield* reopen(live, {
      ...config,
      writer: { ...config.writer, intercept },
      readers: config.readers.map((reader) => ({ ...reader, intercept }))
    })
  })

/** Returns the faults of a database that was opened with them. */
export const faultsOf = ({ executor }: Database): Effect.Effect<Faults, ConfigInvalid> =>
  Effect.suspend(() => {
    const { intercept } = executor.config.writer
    const rules = intercept === undefined ? undefined : rulesOf.get(intercept)
    if (rules !== undefined) return Effect.succeed(makeFaults(executor, rules))
    const { database } = executor
    const expected = "a database that TestDatabase.layerFaults provides"
    return Effect.fail(
      new ConfigInvalid({ database, setting: "TestDatabase.faults", given: "a database without faults", expected })
    )
  })
