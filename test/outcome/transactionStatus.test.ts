/** The meaning of a server's answer for a transaction, by the run of the server. */

import { assert, describe, it } from "vitest"
import { judgeStatus, TransactionId } from "../../src/internal/outcome/transactionStatus.js"

const run = { systemId: "7", timeline: 1, startedAt: "1000", recoveredTo: undefined }
const id = new TransactionId("740", "0/200", run)

const same = run
const restarted = { ...run, startedAt: "2000" }
const recoveredBefore = { ...restarted, recoveredTo: 0x1ffn }
const recoveredAfter = { ...restarted, recoveredTo: 0x200n }
/** One backend has crashed: the postmaster is the same. */
const reinitialized = { ...run, recoveredTo: 0x1ffn }
const promoted = { ...run, timeline: 2 }
const otherSystem = { ...run, systemId: "8" }

describe("the status of a transaction", () => {
  it.each([
    ["on a standby", undefined, "committed", "open"],
    ["while it is in progress", same, "in progress", "open"],
    ["in the same run", same, "committed", "committed"],
    ["undone in the same run", same, "aborted", "undone"],
    ["too old to be known", same, undefined, "unproved"],
    // a crash before the restart may have lost it, and its id may be that of another transaction
    ["after a clean restart", restarted, "committed", "unproved"],
    ["undone after a restart", restarted, "aborted", "undone"],
    ["after a recovery that ended before it", recoveredBefore, "committed", "undone"],
    ["after a recovery that ended before it, while its id is used again", recoveredBefore, "in progress", "undone"],
    ["after a recovery that has it", recoveredAfter, "committed", "unproved"],
    ["after the crash of a backend that has lost it", reinitialized, "committed", "undone"],
    ["on another timeline", promoted, "committed", "unproved"],
    ["undone on another timeline", promoted, "aborted", "unproved"],
    ["in another cluster", otherSystem, "committed", "unproved"]
  ] as const)("the status of a transaction %s is judged by the run of the server", (_, now, status, is) => {
    assert.strictEqual(judgeStatus(id, { run: now, status }), is)
  })

  it("the status of a prepared transaction is proved after a restart, because no other gets its id", () => {
    for (const now of [restarted, recoveredAfter]) {
      assert.strictEqual(judgeStatus(id, { run: now, status: "committed" }, true), "committed")
    }
    assert.strictEqual(judgeStatus(id, { run: promoted, status: "committed" }, true), "unproved")
  })
})
