/**
 * The report of a transaction's lost connection to its waiters.
 */
import { assert, describe, it } from "vitest"
import { ConnectionHolder } from "../../src/internal/transaction/connectionHolder.js"

describe("a lost connection", () => {
  it("a lost connection is not reported to a waiter that another waiter has removed during the report", () => {
    const location = { database: "app", server: "" }
    const holder = new ConnectionHolder({ location, busyTimeout: 0, checkout: () => () => {}, checkin: () => {} })
    const told: Array<string> = []
    const takeBacks: Array<() => void> = []
    for (const name of ["first", "second"]) {
      takeBacks.push(
        holder.onLost(() => {
          told.push(name)
          for (const takeBack of takeBacks) takeBack()
        })
      )
    }
    holder.markLost({ _tag: "Disconnected", ...location, cause: new Error("gone"), outcome: "undone" })
    assert.deepStrictEqual(told, ["first"])
  })
})
