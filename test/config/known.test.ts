/** Settings that are mistyped, or named as in other libraries, in programs without types. */
import * as Either from "effect/Either"
import * as Redacted from "effect/Redacted"
import { type Database, DatabaseConfig } from "effect-db"
import { assert, describe, it } from "vitest"
import { nearestName } from "../../src/internal/config/nearestName.js"

const url = Redacted.make("postgres://me:s3cret@localhost/app")
const parts = { host: "localhost", database: "app", username: "me" }

const refusal = (options: Record<string, unknown>) => {
  // the type would refuse these
  const made = DatabaseConfig.make("app", { writer: url, ...options } as unknown as Database.Options)
  const error = Either.getOrThrow(Either.flip(made))
  assert.notInclude(error.message, "s3cret")
  return [error.setting, error.given, error.expected]
}

describe("unknown settings", () => {
  it.each([
    ["maxConnection", "maxConnections"],
    ["maxconnections", "maxConnections"],
    ["aquireTimeout", "acquireTimeout"],
    ["statement_timeout", "statementTimeout"],
    ["reader", "readers"],
    ["wirter", "writer"],
    ["max", "maxConnections"],
    ["idleTimeoutMillis", "idleTimeout"],
    ["connectionTimeoutMillis", "connectTimeout"],
    ["connectionTTL", "maxLifetime"],
    ["url", "writer"],
    ["tls", "ssl"]
  ])("the unknown setting %s is refused with the suggestion %s", (name, meant) => {
    assert.deepStrictEqual(refusal({ [name]: 1 }), [name, "an unknown setting", `"${meant}"`])
  })

  it.each([
    ["hostt", "host"],
    ["user", "username"],
    ["dbname", "database"],
    ["passwordfile", "passwordFile"],
    ["tls", "ssl"],
    ["target_session_attrs", "targetSessionAttrs"],
    ["channelbinding", "channelBinding"]
  ])("the unknown setting %s of a server is refused with the suggestion %s", (name, meant) => {
    const expected = ["an unknown setting", `"${meant}"`]
    assert.deepStrictEqual(refusal({ writer: { ...parts, [name]: 1 } }), [`writer.${name}`, ...expected])
    assert.deepStrictEqual(refusal({ readers: [{ ...parts, [name]: 1 }] }), [`readers[0].${name}`, ...expected])
    assert.deepStrictEqual(refusal({ writer: { url, [name]: 1 } }), [`writer.${name}`, ...expected])
  })

  it.each([
    ["rejectUnauthorised", "rejectUnauthorized"],
    ["serverName", "servername"],
    ["minversion", "minVersion"]
  ])("the unknown setting %s of ssl is refused with the suggestion %s", (name, meant) => {
    const expected = ["an unknown setting", `"${meant}"`]
    assert.deepStrictEqual(refusal({ ssl: { [name]: 1 } }), [`ssl.${name}`, ...expected])
    assert.deepStrictEqual(refusal({ writer: { ...parts, ssl: { [name]: 1 } } }), [`writer.ssl.${name}`, ...expected])
  })

  it("an unknown setting that is near none is refused with all names", () => {
    const [setting, given, expected] = refusal({ writer: { ...parts, quux: 1 } })
    assert.deepStrictEqual([setting, given], ["writer.quux", "an unknown setting"])
    assert.include(expected, "one of password, passwordFile, ssl")
    assert.strictEqual(refusal({ constructor: 1 })[0], "constructor")
  })

  it("ssl that is neither a boolean nor an object is refused as a setting", () => {
    for (const ssl of ["require", 1, null]) {
      assert.strictEqual(refusal({ writer: { ...parts, ssl } })[0], "writer.ssl")
      if (ssl !== null) assert.strictEqual(refusal({ ssl })[0], "ssl")
    }
  })
})

describe("the nearest name to an unknown one", () => {
  const known = ["sslmode", "sslcert", "port", "host", "options"]

  it("the nearest name is the one with the fewest letters to change, whatever its case and hyphens", () => {
    assert.strictEqual(nearestName("SSL-Mode", known), "sslmode")
    assert.strictEqual(nearestName("sslmdoe", known), "sslmode")
    assert.strictEqual(nearestName("prot", known), "port")
    assert.strictEqual(nearestName("option", known), "options")
  })

  it("no name is the nearest if too little is alike, or nothing is left to compare", () => {
    assert.strictEqual(nearestName("hunter2", known), undefined)
    assert.strictEqual(nearestName("", known), undefined)
    assert.strictEqual(nearestName("--", known), undefined)
    assert.strictEqual(nearestName("x".repeat(10_000), known), undefined)
  })
})
