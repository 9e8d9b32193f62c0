/**
 * The idempotency keys of requests of plain code.
 */
import * as Effect from "effect/Effect"
import type { DatabaseError } from "../../DatabaseError.js"
import { type KeyedFacts, type KeyOptions, type KeyProblem, keyIn, requestKeyOf } from "../http/idempotencyKey.js"
import type { KeptAnswer } from "../http/keptAnswer.js"
import { type Earlier, type KeyDatabase, KeyedRequest, keyConflict, openKeyDatabase } from "../http/keyedRequest.js"
import { currentContext } from "../transaction/context.js"
import { joinableUnitOf, unitOf } from "../unitOfWork/unitOf.js"

/** Options of the keys of requests of plain code. */
export type PlainKeyOptions<Request> = KeyOptions<KeyDatabase<unknown>, Request>

/** Failure of a request that must not run, with its answer. */
export class Refused {
  constructor(readonly earlier: Earlier) {}
}

/**
 * Returns the key of a request, or `undefined` if it has none. It fails with the answer if the
 * request must not run.
 */
export const keyedRequestOf = <Request>(
  options: PlainKeyOptions<Request>,
  request: Request,
  facts: KeyedFacts,
  url: string,
  content: Effect.Effect<string | Uint8Array | undefined>
): Effect.Effect<KeyedRequest | undefined, DatabaseError | Refused, unknown> => {
  const key = keyIn(facts, options)
  if (key === undefined) return Effect.succeed(undefined)
  const refuse = (problem: KeyProblem) => Effect.fail(new Refused({ problem }))
  if (typeof key !== "string") return refuse(key)
  return Effect.withFiberRuntime<KeyedRequest, DatabaseError | Refused, unknown>((fiber) => {
    if (joinableUnitOf(currentContext(fiber)) !== undefined) return Effect.fail(keyConflict())
    return Effect.gen(function* () {
      const opened = yield* openKeyDatabase(options.database)
      const own = options.fingerprint?.(request) ?? (yield* content)
      const keyed = new KeyedRequest(
        opened,
        requestKeyOf(key, facts, options.scope?.(request) ?? "", url, own),
        options.keepAnswer
      )
      const earlier = yield* keyed.earlier
      return earlier === undefined ? keyed : yield* Effect.fail(new Refused(earlier))
    })
  })
}

/** Stores a key with the work of the unit that the fiber is in. */
export const storeKey = (
  keyed: KeyedRequest,
  answer: Effect.Effect<KeptAnswer | undefined>
): Effect.Effect<void, DatabaseError> =>
  Effect.withFiberRuntime((fiber) => {
    const unit = unitOf(currentContext(fiber))
    return unit === undefined ? Effect.void : Effect.flatMap(answer, (kept) => keyed.store(unit, kept))
  })
