/** The transitions of the state of a writer. */
import { assert, describe, it } from "vitest"
import { type ServerReport, withoutHistory } from "../../src/internal/topology/probeReport.js"
import {
  initial,
  onDoubt,
  onListed,
  onNoAnswer,
  onReport,
  type WriterState
} from "../../src/internal/topology/writerState.js"

const primary = (timeline: number | undefined, systemId = "1"): ServerReport => ({
  ...withoutHistory,
  systemId,
  timeline
})

const standby: ServerReport = { ...primary(1), isStandby: true }

/** Returns the state after reports, each of a host. */
const stateAfter = (state: WriterState, ...reports: ReadonlyArray<readonly [host: string, report: ServerReport]>) =>
  reports.reduce((state, [host, report]) => onReport(state, host, report)[0], state)

const onA = stateAfter(initial, ["a", primary(1)])

describe("the state of a writer", () => {
  it("the first host that accepts writes becomes the writer, which is no change from another one", () => {
    const [state, change] = onReport(initial, "a", primary(3))
    assert.deepInclude(state, { _tag: "Known", host: "a", highest: { systemId: "1", timeline: 3 } })
    assert.deepStrictEqual(change, { from: undefined, to: "a", timeline: 3 })
  })

  it("a standby does not become the writer", () => {
    assert.deepStrictEqual(onReport(initial, "a", standby), [initial, undefined])
  })

  it("a primary that does not report its timeline becomes the writer only if no timeline is known", () => {
    const [state, change] = onReport(initial, "a", primary(undefined))
    assert.deepInclude(state, { _tag: "Known", host: "a", highest: undefined })
    assert.deepStrictEqual(change, { from: undefined, to: "a", timeline: undefined })
    assert.deepStrictEqual(onReport(state, "b", primary(undefined)), [state, undefined])
    assert.deepStrictEqual(onReport(onA, "b", primary(undefined)), [onA, undefined])
  })

  it("a host on a higher timeline becomes the writer at once", () => {
    const [state, change] = onReport(onA, "b", primary(2))
    assert.deepInclude(state, { _tag: "Known", host: "b" })
    assert.deepStrictEqual(change, { from: "a", to: "b", timeline: 2 })
  })

  it("a host on the same timeline, or on a lower one, does not become the writer", () => {
    const onB = stateAfter(onA, ["b", primary(2)])
    assert.deepStrictEqual(onReport(onB, "a", primary(2)), [onB, undefined])
    assert.deepStrictEqual(onReport(onB, "a", primary(1)), [onB, undefined])
  })

  it("a former primary does not become the writer while the writer is searched", () => {
    const searching = onNoAnswer(stateAfter(onA, ["b", primary(2)]), "b")
    assert.strictEqual(searching._tag, "Searching")
    assert.deepStrictEqual(onReport(searching, "a", primary(1)), [searching, undefined])
  })

  it("a server of another cluster does not become the writer, whatever its timeline is", () => {
    assert.deepStrictEqual(onReport(onA, "b", primary(9, "2")), [onA, undefined])
  })

  it("a writer that has been demoted is searched, and the search remembers it", () => {
    const searching = stateAfter(onA, ["a", standby])
    assert.deepInclude(searching, { _tag: "Searching", lost: "a" })
    assert.deepStrictEqual(onReport(searching, "b", primary(2))[1], { from: "a", to: "b", timeline: 2 })
  })

  it("a writer that is restored after a promotion with a higher timeline is no longer the writer", () => {
    const onB = stateAfter(onA, ["b", primary(2)])
    assert.deepInclude(stateAfter(onB, ["b", primary(1)]), { _tag: "Searching", lost: "b" })
  })

  it("a doubtful writer stays the writer if it answers, without a change", () => {
    const doubted = onDoubt(onA, "a")
    assert.deepInclude(doubted, { isDoubted: true })
    assert.deepStrictEqual(onReport(doubted, "a", primary(1)), [onA, undefined])
  })

  it("an event of a host that is not the writer changes nothing", () => {
    assert.strictEqual(onDoubt(onA, "b"), onA)
    assert.strictEqual(onNoAnswer(onA, "b"), onA)
    assert.strictEqual(onNoAnswer(initial, "a"), initial)
  })

  it("a writer that is lost and found again on its timeline is no change", () => {
    const [state, change] = onReport(onNoAnswer(onA, "a"), "a", primary(1))
    assert.deepInclude(state, { _tag: "Known", host: "a" })
    assert.isUndefined(change)
  })

  it("a writer that was promoted itself, to a higher timeline, is no change", () => {
    const [state, change] = onReport(onA, "a", primary(2))
    assert.deepInclude(state, { host: "a", highest: { systemId: "1", timeline: 2 } })
    assert.isUndefined(change)
  })

  it("a writer that was removed from the hosts stays, and yields to another one on its timeline", () => {
    const removed = onListed(onA, "a", false)
    assert.deepInclude(removed, { _tag: "Known", host: "a", isRemoved: true })
    assert.deepStrictEqual(onReport(removed, "b", standby), [removed, undefined])
    assert.deepStrictEqual(onReport(removed, "b", primary(9, "2")), [removed, undefined])
    assert.deepInclude(stateAfter(removed, ["a", primary(1)]), { _tag: "Known", host: "a", isRemoved: true })
    const [state, change] = onReport(removed, "b", primary(1))
    assert.deepInclude(state, { _tag: "Known", host: "b", isRemoved: false })
    assert.deepStrictEqual(change, { from: "a", to: "b", timeline: 1 })
  })

  it("a writer that returns to the hosts yields to no host on its timeline, and the removal of another host changes nothing", () => {
    const returned = onListed(onListed(onA, "a", false), "a", true)
    assert.deepStrictEqual(returned, onA)
    assert.deepStrictEqual(onReport(returned, "b", primary(1)), [onA, undefined])
    assert.deepStrictEqual(onListed(onA, "b", false), onA)
    assert.deepStrictEqual(onListed(initial, "a", false), initial)
  })
})
