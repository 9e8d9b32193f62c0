/** The errors, observations and parameters that `edge` makes of the values of the core. */
import { inspect } from "node:util"
import { assert, it } from "@effect/vitest"
import * as Equal from "effect/Equal"
import * as Redacted from "effect/Redacted"
import { DatabaseError, Observation } from "effect-db"
import { describe } from "vitest"
import type { PlainFailure } from "../../src/internal/connection/failure.js"
import { toDatabaseError } from "../../src/internal/edge/databaseError.js"
import { revealRedactedValues } from "../../src/internal/edge/revealRedacted.js"
import { Observers } from "../../src/internal/observability/observers.js"
import { encodeParameter } from "../../src/internal/protocol/parameterEncoder.js"
import { Secret } from "../../src/internal/protocol/secret.js"

const location = { database: "app", server: "localhost:5432" }

describe("failures of the core", () => {
  it("a failure becomes the error of its tag, with its fields and its cause", () => {
    const cause = new Error("connection refused")
    const error = toDatabaseError({ _tag: "ConnectFailed", ...location, reason: "unreachable", cause })
    assert.instanceOf(error, DatabaseError.ConnectFailed)
    assert.isTrue(DatabaseError.isDatabaseError(error))
    assert.deepStrictEqual(
      [error._tag, error.server, error.reason, error.cause],
      ["ConnectFailed", location.server, "unreachable", cause]
    )
    assert.strictEqual(
      error.message,
      new DatabaseError.ConnectFailed({ ...location, reason: "unreachable", cause }).message
    )
  })

  it("a field that the failure leaves out has the default of the error", () => {
    assert.strictEqual(toDatabaseError({ _tag: "ReadOnlyViolation", ...location }).reason, "reader")
  })

  it("a PoolExhausted failure becomes an error without a stack, and errors made after it have one", () => {
    const failure: PlainFailure<"PoolExhausted"> = {
      _tag: "PoolExhausted",
      ...location,
      reason: "shed",
      waitedMillis: 1,
      total: 1,
      active: 1,
      idle: 0,
      waiting: 0
    }
    assert.notInclude(toDatabaseError(failure).stack ?? "", "\n    at ")
    assert.include(toDatabaseError({ _tag: "DatabaseClosed", ...location }).stack ?? "", "\n    at ")
  })

  it("a failure of a statement that is converted again is the same error, also as a cause", () => {
    const failure: PlainFailure<"UniqueViolation"> = { _tag: "UniqueViolation", ...location }
    const error = toDatabaseError(failure)
    assert.strictEqual(toDatabaseError(failure), error)
    const rolledBack = toDatabaseError({ _tag: "RolledBackAtCommit", ...location, earlier: failure })
    assert.strictEqual(rolledBack.cause, error)
    assert.notProperty(rolledBack, "earlier")
  })

  it("a failed checkout of several callers is an error of its own for each of them", () => {
    const failure: PlainFailure<"DatabaseClosed"> = { _tag: "DatabaseClosed", ...location }
    assert.notStrictEqual(toDatabaseError(failure), toDatabaseError(failure))
  })
})

describe("observations of the core", () => {
  it("an observer receives observations as values that are equal by their fields", () => {
    const observers = new Observers(() => {})
    const received: Array<Observation.Observation> = []
    observers.add((observation) => void received.push(observation))
    observers.observe({ _tag: "MarkedUp", ...location })
    const made = Observation.Observation.MarkedUp(location)
    observers.observe(made)
    assert.isTrue(Equal.equals(received[0], made))
    assert.strictEqual(received[1], made)
  })
})

describe("secrets of the core", () => {
  it("nothing that renders a secret shows its text", () => {
    const secret = new Secret("s3cr3t")
    assert.strictEqual(secret.reveal(), "s3cr3t")
    for (const shown of [inspect(secret, { showHidden: true }), JSON.stringify({ secret }), String(secret)]) {
      assert.notInclude(shown, "s3cr3t")
    }
  })

  it("a redacted value is revealed in a parameter, also inside of JSON and arrays", () => {
    revealRedactedValues()
    const redacted = Redacted.make(Redacted.make("s3cr3t"))
    assert.strictEqual(encodeParameter(redacted), "s3cr3t")
    assert.strictEqual(encodeParameter({ key: redacted }), '{"key":"s3cr3t"}')
    assert.strictEqual(encodeParameter([redacted]), '{"s3cr3t"}')
  })
})
