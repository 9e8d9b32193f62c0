/**
 * The connection of a transaction, as its waiters know it.
 */
import { DatabaseError } from "effect-db"
import { assert, describe, it } from "vitest"
import { ConnectionHolder } from "../../src/internal/transaction/connectionHolder.js"

describe("a lost connection", () => {
  it("a lost connection is not reported to a waiter that another waiter has removed during the report", () => {
    const place = { database: "app", server: "" }
    const link = new ConnectionHolder({ place, patience: 0, checkout: () => () => {}, checkin: () => {} })
    const told: Array<string> = []
    const takeBacks: Array<() => void> = []
    for (const name of ["first", "second"]) {
      takeBacks.push(
        link.whenLost(() => {
          told.push(name)
          for (const takeBack of takeBacks) takeBack()
        })
      )
    }
    link.die(new DatabaseError.Disconnected({ ...place, cause: new Error("gone"), outcome: "undone" }))
    assert.deepStrictEqual(told, ["first"])
  })
})
