/**
 * The report of a transaction's lost connection to its waiters.
 */
import { assert, describe, it } from "vitest"
import { ConnectionHolder } from "../../src/internal/transaction/connectionHolder.js"

describe("a lost connection", () => {
  it("a lost connection is not reported to a waiter that another waiter has removed during the report", () => {
    const location = { database: "app", server: "" }
    const holder = new ConnectionHolder({ location, busyTimeout: 0, checkout: () => () => {}, checkin: () => {} })
    const received: Array<string> = []
    const removals: Array<() => void> = []
    for (const name of ["first", "second"]) {
      removals.push(
        holder.onLost(() => {
          received.push(name)
          for (const remove of removals) remove()
        })
      )
    }
    holder.markLost({ _tag: "Disconnected", ...location, cause: new Error("gone"), outcome: "undone" })
    assert.deepStrictEqual(received, ["first"])
  })
})
