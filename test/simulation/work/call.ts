/**
 * One call of the program under test: its statements, its writes and its end.
 */
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import { DatabaseError } from "effect-db"
import type { Random } from "../loop/random.js"
import { calls } from "../postgres/commands.js"
import { type DatabaseName, type Databases, databases } from "./databases.js"
import type { Fate, Ledger, Operation } from "./ledger.js"

/** Failure on purpose of the body of a transaction. */
export class Planned extends Error {
  readonly _tag = "Planned"
}

/** Times that the hooks of one attempt have run. */
interface HookCounts {
  committed: number
  rolledBack: number
  unknown: number
}

/** Attempt of a transaction: its writes and its hooks. */
export interface Attempt {
  /** The database of the hooks. */
  readonly database: DatabaseName
  readonly operations: Array<Operation>
  readonly hooks: HookCounts
  /** True from the registration of the hooks on. */
  isHooked: boolean
}

/** Report of a call. */
export interface CallReports {
  readonly violated: (invariant: string, message: string) => void
  readonly trace: (line: string) => void
}

/** Call of the program under test. */
export class Call {
  /** True after the interruption of its fiber, or its timeout. */
  isStopped = false
  isEnded = false
  readonly attempts: Array<Attempt> = []
  private tags = 0

  constructor(
    readonly id: number,
    readonly random: Random,
    readonly ledger: Ledger,
    private readonly reports: CallReports
  ) {}

  /** Returns a tag that no other statement has. */
  tag(): string {
    return `${this.id}.${++this.tags}`
  }

  violated(invariant: string, message: string): void {
    this.reports.violated(invariant, `call ${this.id}: ${message}`)
  }

  /** Runs a statement, whose last column must return its tag. */
  readonly statement = (
    database: DatabaseName,
    kind: "writer" | "reader",
    text: string,
    values: ReadonlyArray<unknown>
  ): Effect.Effect<Readonly<Record<string, unknown>>, unknown, Databases> =>
    Effect.suspend(() => {
      const tag = this.tag()
      return Effect.flatMap(databases[database][kind], (sql) =>
        Effect.map(DatabaseError.refine(sql.unsafe<Record<string, unknown>>(text, [...values, tag])), ([row]) => {
          if (row?.tag !== tag) this.violated("crossing", `the answer to ${tag} is that to ${String(row?.tag)}`)
          return row ?? {}
        })
      )
    })

  /** Writes one entry, and returns its operation. */
  readonly insert = (database: DatabaseName, attempt?: Attempt): Effect.Effect<Operation, unknown, Databases> =>
    Effect.suspend(() => {
      const operation = this.ledger.begin(this.id, database)
      attempt?.operations.push(operation)
      const write = Effect.as(this.statement(database, "writer", calls.insert, [operation.id]), operation)
      if (attempt !== undefined) return write
      return Effect.onExit(write, (exit) => Effect.sync(() => this.ledger.settle(operation, fateOf(exit, database))))
    })

  /** Begins an attempt of a transaction. */
  beginAttempt(database: DatabaseName): Attempt {
    const attempt: Attempt = {
      database,
      operations: [],
      hooks: { committed: 0, rolledBack: 0, unknown: 0 },
      isHooked: false
    }
    this.attempts.push(attempt)
    return attempt
  }

  /** Registers the hooks of an attempt. */
  readonly hook = (attempt: Attempt): Effect.Effect<void, never, Databases> => {
    const { afterCommit, afterRollback, afterUnknown } = databases[attempt.database]
    const count = (name: keyof HookCounts) =>
      Effect.sync(() => {
        attempt.hooks[name]++
        this.reports.trace(`call ${this.id} hook ${name}`)
      })
    return Effect.all(
      [
        Effect.sync(() => {
          attempt.isHooked = true
        }),
        afterCommit(count("committed")),
        afterRollback(count("rolledBack")),
        afterUnknown(count("unknown"))
      ],
      { discard: true }
    )
  }

  /** Settles the writes of the attempts when the call has ended. */
  settle(exit: Exit.Exit<unknown, unknown>): void {
    const last = this.attempts.at(-1)
    for (const attempt of this.attempts) {
      const { hooks } = attempt
      const { committed, rolledBack, unknown } = hooks
      if (committed + rolledBack + unknown > 1) {
        this.violated("hooks", `the hooks of an attempt have run ${JSON.stringify(hooks)}`)
      }
      const told: Fate | undefined =
        committed > 0 ? "stored" : unknown > 0 ? "unknown" : rolledBack > 0 ? "absent" : undefined
      for (const operation of attempt.operations) {
        const isHooked = operation.database === attempt.database
        const end = attempt === last ? fateOf(exit, operation.database) : "absent"
        if (attempt === last && Exit.isSuccess(exit) && attempt.isHooked && committed !== 1) {
          this.violated("hooks", `a commit has run its hooks ${JSON.stringify(hooks)}`)
        }
        if (isHooked && told !== undefined && end !== "unknown" && told !== "unknown" && told !== end) {
          this.violated("hooks", `the hooks say ${told}, and the call ends with ${end}`)
        }
        this.ledger.settle(operation, isHooked && end === "unknown" && told !== undefined ? told : end)
      }
    }
  }

  /** Checks that the failures of a call are errors of the library. */
  judge(exit: Exit.Exit<unknown, unknown>): string {
    if (Exit.isSuccess(exit)) return "success"
    const { cause } = exit
    for (const defect of Cause.defects(cause)) {
      this.violated("errors", `a defect: ${Cause.pretty(Cause.die(defect))}`)
    }
    const names: Array<string> = []
    for (const failure of Cause.failures(cause)) {
      if (failure instanceof Planned || Cause.isTimeoutException(failure)) names.push(failure._tag)
      else {
        if (!DatabaseError.isDatabaseError(failure)) {
          this.violated("errors", `an untyped failure: ${String(failure)}`)
          continue
        }
        names.push(nameOf(failure))
        // a cancel request must not hit the statement of another caller
        if (failure._tag === "StatementTimeout" && !failure.limit.includes("statement timeout") && !this.isStopped) {
          this.violated("crossing", `its statement was cancelled for another call: ${failure.limit}`)
        }
      }
    }
    return names.length === 0 ? "interrupted" : names.join(" ")
  }
}

/** Returns what the end of a call says about its writes on one database. */
const fateOf = (exit: Exit.Exit<unknown, unknown>, database: string): Fate => {
  if (Exit.isSuccess(exit)) return "stored"
  if (Cause.isInterrupted(exit.cause)) return "unknown"
  const fates = [...Cause.failures(exit.cause)].map((failure): Fate => {
    if (Cause.isTimeoutException(failure)) return "unknown"
    const error = DatabaseError.isDatabaseError(failure) ? failure : undefined
    if (error?._tag === "PartialCommit") {
      if (error.committed.includes(database)) return "stored"
      return error.failed === database && error.outcome === "unknown" ? "unknown" : "absent"
    }
    const isOpen =
      error?._tag === "CommitOutcomeUnknown" || (error?._tag === "Disconnected" && error.outcome === "inDoubt")
    return isOpen ? "unknown" : "absent"
  })
  return fates.length === 0 ? "unknown" : fates.includes("unknown") ? "unknown" : (fates[0] ?? "unknown")
}

const nameOf = (error: DatabaseError.DatabaseError): string => {
  switch (error._tag) {
    case "ConnectFailed":
    case "PoolExhausted":
      return `${error._tag}:${error.reason}`
    case "Disconnected":
      return `${error._tag}:${error.outcome}`
    default:
      return error._tag
  }
}
