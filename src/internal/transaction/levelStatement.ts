/**
 * Statements of a level: the steps before and after each statement, and the repetition or undoing
 * of a failed one.
 */
import type { Connection, Exchange, Failure, Request } from "../connection/connection.js"
import { isStaleRefusal } from "../connection/statementFailure.js"
import type { Copy } from "../protocol/copyData.js"
import type { Step } from "../protocol/frontendMessages.js"
import { isReadOnly } from "../sql/commandScanner.js"
import { isCopy } from "../sql/copy.js"
import { localSettingsIn } from "../sql/localSettings.js"
import type { OnStatement } from "../statement/autocommit.js"
import type { Level } from "./level.js"
import { exchangeIn, type FinishExchange } from "./levelExchange.js"
import { markBegun, type PendingBegin, withOwnSteps } from "./pendingBegin.js"
import { makeSavepoint, type StatementIsolation, stepsAfter, stepsBefore } from "./savepoint.js"

const none: ReadonlyArray<never> = []
const nothing = () => {}

/** Runs a statement. The returned function cancels it, as that of {@link exchangeIn}. */
export const runStatement = (
  level: Level,
  request: Request,
  isolation: StatementIsolation,
  done: OnStatement,
  onSent = nothing
): (() => void) =>
  exchangeIn(level, request, isolation, done, onSent, (connection, pending, finish) => {
    const own = isolation === "none" ? undefined : makeSavepoint()
    const localSettings = settingsToEnd(level, request, isolation)
    const before = stepsBefore(own, isolation, localSettings)
    const path = level.connectionHolder.searchPathSteps(request.path)
    const ownAfter = stepsAfter(own, isolation, localSettings)
    const { idTracker } = level.connectionHolder
    const idStep =
      isolation === "readOnly" || level.readOnly || request.simple
        ? undefined
        : idTracker.stepAfter(connection, request.text)
    const after = idStep === undefined ? ownAfter : [idStep, ...ownAfter]
    const first = withOwnSteps(pending, path.length === 0 ? before : [...path, ...before])
    let isRepeated = false
    const onExchange = (
      failure: Failure | undefined,
      exchange: Exchange,
      // if only the rows could not be read, the server has executed the steps after the statement,
      // too
      hasSavepoint = exchange.acknowledged > first.length - before.length &&
        !(failure?._tag === "unsendable" && exchange.acknowledged > first.length)
    ): void => {
      if (failure === undefined || failure._tag === "lost") return finish(failure, exchange)
      const undo = pending[0]?.level.undoSteps ?? own?.undo
      // the statement was refused before it was bound, so nothing has run in the levels that began
      // with it
      if (undo !== undefined && !isRepeated && isStaleRefusal(failure) && exchange.bound === first.length) {
        isRepeated = true
        const undone = pending.length > 0 ? "begun" : "statement"
        return connection.undo(undo, (undoFailure) => {
          if (undoFailure === undefined && !level.isCallerGone) connection.run(first, request, after, onExchange)
          else finish(failure, exchange, undoFailure === undefined ? undone : "nothing")
        })
      }
      if (own === undefined || !hasSavepoint) return finish(failure, exchange)
      // the failure concerns the statement alone: the level stays usable
      connection.undo(own.undo, (undoFailure) =>
        finish(failure, exchange, undoFailure === undefined ? "statement" : "nothing")
      )
    }
    // the server would read messages behind a COPY as data of the COPY
    const isAlone = request.simple || (ownAfter.length > 0 && isCopy(request.text))
    if (!isAlone) return connection.run(first, request, after, onExchange)
    // a text with several commands is sent by the simple protocol, in an exchange of its own
    const runAlone = () =>
      connection.run(none, request, none, (failure, exchange) => {
        if (failure !== undefined || after.length === 0) return onExchange(failure, exchange, true)
        connection.steps(after, (afterFailure) => onExchange(afterFailure, exchange, true))
      })
    if (first.length === 0) return runAlone()
    runFirst(level, connection, pending, first, finish, runAlone)
  })

/**
 * Returns the settings of a statement in a sandbox that must end with its emulated transaction, and
 * records them for its end; `undefined` if there are none.
 */
const settingsToEnd = (
  { sandboxed }: Level,
  { text, values }: Request,
  isolation: StatementIsolation
): ReadonlySet<string> | undefined => {
  if (sandboxed === undefined) return undefined
  const emulated = isolation === "autocommit" ? undefined : sandboxed.emulated
  if (emulated !== undefined && !isReadOnly(text)) sandboxed.recordWrite()
  if (emulated === undefined && isolation !== "autocommit") return undefined
  const names = localSettingsIn(text, values)
  if (names.size === 0) return undefined
  for (const name of names) emulated?.localSettings.add(name)
  return names
}

/**
 * Runs a COPY with the data of `copy`. The returned function cancels it, as that of {@link
 * exchangeIn}.
 */
export const runCopy = (level: Level, request: Request, copy: Copy, done: OnStatement): (() => void) =>
  exchangeIn(level, request, "none", done, nothing, (connection, pending, finish) => {
    const first = withOwnSteps(pending, level.connectionHolder.searchPathSteps(request.path))
    if (!request.simple || first.length === 0) return connection.copy(first, request, copy, finish)
    runFirst(level, connection, pending, first, finish, () => connection.copy(none, request, copy, finish))
  })

/**
 * Runs the steps before a statement in an exchange of their own, then the statement, unless its
 * caller was interrupted.
 */
const runFirst = (
  level: Level,
  connection: Connection,
  pending: ReadonlyArray<PendingBegin>,
  first: ReadonlyArray<Step>,
  finish: FinishExchange,
  run: () => void
): void =>
  connection.steps(first, (failure, exchange) => {
    markBegun(pending, exchange.acknowledged)
    if (failure === undefined && !level.isCallerGone) run()
    else finish(failure, exchange)
  })
