import { assert, it } from "@effect/vitest"
import { SqlState } from "effect-db"
import { describe } from "vitest"

describe("SqlState", () => {
  it("SqlState.meaning returns the error that a SQLSTATE stands for, and QueryFailed for all others", () => {
    assert.strictEqual(SqlState.meaning("23505"), "UniqueViolation")
    assert.strictEqual(SqlState.meaning("40P01"), "DeadlockDetected")
    assert.strictEqual(SqlState.meaning("57P01"), "Disconnected")
    assert.strictEqual(SqlState.meaning("08006"), "Disconnected")
    assert.strictEqual(SqlState.meaning("22P02"), "InvalidInput")
    assert.strictEqual(SqlState.meaning("42P01"), "QueryFailed")
    assert.strictEqual(SqlState.meaning(""), "QueryFailed")
    assert.strictEqual(SqlState.meaning("toString"), "QueryFailed")
  })

  it("SqlState.connectReason returns why a connect failed", () => {
    assert.strictEqual(SqlState.connectReason("ECONNREFUSED", "connect ECONNREFUSED"), "unreachable")
    assert.strictEqual(SqlState.connectReason("28P01", "password authentication failed"), "authentication")
    assert.strictEqual(SqlState.connectReason("3D000", ""), "noSuchDatabase")
    assert.strictEqual(SqlState.connectReason("53300", ""), "tooManyConnections")
    assert.strictEqual(SqlState.connectReason("57P03", ""), "startingUp")
    assert.strictEqual(SqlState.connectReason("CERT_HAS_EXPIRED", ""), "tls")
    assert.strictEqual(SqlState.connectReason("", "The server does not support SSL connections"), "tls")
    assert.strictEqual(SqlState.connectReason("", "SASL: client password must be a string"), "authentication")
    assert.strictEqual(SqlState.connectReason("constructor", ""), "unreachable")
  })

  it("SqlState.connectReason reads the message of a pooler, which has one SQLSTATE for all reasons", () => {
    const reasons = {
      "no more connections allowed (max_client_conn)": "tooManyConnections",
      "sorry, too many clients already": "tooManyConnections",
      "server login has been failing, try again later (server_login_retry)": "startingUp",
      "the database system is starting up": "startingUp",
      'database "app" is disabled': "startingUp",
      query_wait_timeout: "unresponsive",
      "no such database: app": "noSuchDatabase",
      'database "app" does not exist': "noSuchDatabase",
      "no such user: me": "authentication",
      "SASL authentication failed": "authentication",
      'role "me" does not exist': "authentication",
      "unsupported startup parameter: options": "poolerMode",
      "client_login_timeout (server down)": "unreachable"
    }
    for (const [words, reason] of Object.entries(reasons)) {
      assert.strictEqual(SqlState.connectReason("08P01", words), reason, words)
    }
    assert.strictEqual(SqlState.connectReason("", "query_wait_timeout"), "unreachable")
  })

  it("SqlState.lossMeaning returns the error of a lost connection, and isUnserved if no server was reached", () => {
    assert.strictEqual(SqlState.lossMeaning("25P03", "terminating connection"), "IdleTransactionTimeout")
    assert.strictEqual(SqlState.lossMeaning("08P01", "idle transaction timeout"), "IdleTransactionTimeout")
    assert.strictEqual(SqlState.lossMeaning("08P01", "server conn crashed?"), "Disconnected")
    assert.isTrue(SqlState.isUnserved("08P01", "query_wait_timeout"))
    assert.isTrue(SqlState.isUnserved("08P01", "invalid server parameter"))
    assert.isFalse(SqlState.isUnserved("08P01", "server conn crashed?"))
    assert.isFalse(SqlState.isUnserved("57P01", "query_wait_timeout"))
  })

  it("SqlState distinguishes transient errors from permanent ones", () => {
    assert.isTrue(SqlState.isNotYet("startingUp"))
    assert.isFalse(SqlState.isNotYet("unreachable"))
    assert.isTrue(SqlState.isTransient("unreachable"))
    assert.isFalse(SqlState.isTransient("authentication"))
    assert.isFalse(SqlState.isTransient("protocol"))
    assert.isTrue(SqlState.isReplayable("40001"))
    assert.isFalse(SqlState.isReplayable("23505"))
    assert.isTrue(SqlState.isStalePlan("0A000", "cached plan must not change result type"))
    assert.isFalse(SqlState.isStalePlan("0A000", "cross-database references are not implemented"))
  })
})
