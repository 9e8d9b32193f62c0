/**
 * The opening of a database with an instrument, over an open database or over a sandbox of it.
 */
import type * as Reactivity from "@effect/experimental/Reactivity"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { Database } from "../../Database.js"
import { make as makeClient } from "../client/client.js"
import { exchangesIn } from "../client/observedExecutor.js"
import { recordCallSites } from "../observability/callSite.js"
import { type Instrument, InstrumentedExecutor } from "./instrumentedExecutor.js"
import { Recorder } from "./recorder.js"

/** Opens the same database again, with an instrument. Servers, pools and listeners are shared. */
export const openInstrumented = (
  opened: Database,
  instrument: Instrument
): Effect.Effect<Database, never, Reactivity.Reactivity | Scope.Scope> =>
  Effect.gen(function* () {
    const { executor: base, listen } = opened
    // a sandbox has its connection already
    const exchanges = exchangesIn(base)
    if (exchanges !== undefined) {
      yield* Effect.acquireRelease(
        Effect.sync(() => exchanges.add(instrument.onExchange)),
        Effect.sync
      )
    }
    const around = base instanceof InstrumentedExecutor ? base.instruments : []
    const executor = new InstrumentedExecutor(base, [...around, instrument])
    const reader = yield* makeClient(executor, "reader", listen.payloads)
    const writer = yield* makeClient(executor, "writer", listen.payloads)
    return { ...opened, writer, reader, any: reader, executor }
  })

/** Opens a database whose work is recorded, with the locations of its statements. */
export const openRecorded = (opened: Database): Effect.Effect<Database, never, Reactivity.Reactivity | Scope.Scope> =>
  Effect.zipRight(
    Effect.acquireRelease(Effect.sync(recordCallSites), Effect.sync),
    openInstrumented(opened, new Recorder(opened.executor.database))
  )

/** Returns the innermost recorder of a database, if it is recorded. */
export const recorderOf = ({ executor }: Database): Recorder | undefined =>
  executor instanceof InstrumentedExecutor
    ? executor.instruments.findLast((instrument) => instrument instanceof Recorder)
    : undefined
