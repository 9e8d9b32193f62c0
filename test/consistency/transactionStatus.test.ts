/** The meaning of a server's answer for a transaction, by the run of the server. */

import { assert, describe, it } from "vitest"
import { judgeStatus, TransactionId } from "../../src/internal/consistency/transactionStatus.js"

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
    ["on a standby", undefined, "committed", true, "open"],
    ["while it is in progress", same, "in progress", true, "open"],
    ["in the same run", same, "committed", true, "committed"],
    ["in the same run, long after", same, "committed", false, "committed"],
    ["undone in the same run", same, "aborted", true, "undone"],
    ["too old to be known", same, undefined, true, "unproved"],
    ["after a clean restart", restarted, "committed", true, "committed"],
    ["after a restart, long after", restarted, "committed", false, "unproved"],
    ["undone after a restart, long after", restarted, "aborted", false, "undone"],
    ["after a recovery that ended before it", recoveredBefore, "committed", true, "undone"],
    ["after a recovery that ended before it, long after", recoveredBefore, "committed", false, "undone"],
    ["after a recovery that has it", recoveredAfter, "committed", true, "committed"],
    ["after a recovery that has it, long after", recoveredAfter, "committed", false, "unproved"],
    ["after the crash of a backend that has lost it", reinitialized, "committed", true, "undone"],
    ["on another timeline", promoted, "committed", true, "unproved"],
    ["undone on another timeline", promoted, "aborted", true, "unproved"],
    ["in another cluster", otherSystem, "committed", true, "unproved"]
  ] as const)("the status of a transaction %s is judged by the run of the server", (_, now, status, isRecent, is) => {
    assert.strictEqual(judgeStatus(id, { run: now, status }, isRecent), is)
  })
})
