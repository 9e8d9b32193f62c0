/**
 * Faults that are planted in a copy of the library, to prove that the simulation finds them.
 */

/** Change of one compiled file. */
interface Edit {
  /** The file, below `dist/internal`. */
  readonly file: string
  /** The text, which occurs once. */
  readonly find: string
  readonly replace: string
}

/** Fault to plant. */
export interface PlantedFault {
  readonly name: string
  readonly meaning: string
  readonly edits: ReadonlyArray<Edit>
}

export const plantedFaults: ReadonlyArray<PlantedFault> = [
  {
    name: "lost-phase",
    meaning: "a COMMIT without an answer counts as undone",
    edits: [
      {
        file: "transaction/levelCommit.js",
        find: `            else if (outcome === undefined)
                finish(state, reported);`,
        replace: ""
      }
    ]
  },
  {
    name: "dirty-connection",
    meaning: "a connection is returned to the pool inside of a transaction",
    edits: [
      {
        file: "transaction/levelRollback.js",
        find: "    connection.undo(outermost.undoSteps, (failure) => {",
        replace:
          "    if (level.parent === undefined) return done();\n    connection.undo(outermost.undoSteps, (failure) => {"
      },
      {
        file: "pool/pool.js",
        find: 'if (connection.busy || connection.status !== "I")',
        replace: "if (connection.busy)"
      }
    ]
  },
  {
    name: "leaked-waiter",
    meaning: "an interrupted caller stays in the wait queue",
    edits: [
      { file: "pool/pool.js", find: "return () => void this.waiters.remove(waiter);", replace: "return () => {};" }
    ]
  },
  {
    name: "stale-writer",
    meaning: "a former primary on an older timeline may be the writer",
    edits: [
      {
        file: "topology/writerState.js",
        find: 'return report.timeline < highest.timeline ? "olderTimeline" : undefined;',
        replace: "return undefined;"
      },
      {
        file: "topology/writerState.js",
        find: "history.timeline > highest.timeline);",
        replace: "history.timeline !== highest.timeline);"
      }
    ]
  },
  {
    name: "doubled-retry",
    meaning: "a statement that was sent is retried as if it had not been",
    edits: [
      {
        file: "statement/autocommit.js",
        find: "(failure.sent && !isUnserved(codeOf(failure.error), failure.error.message))",
        replace: "false"
      }
    ]
  },
  {
    name: "hook-twice",
    meaning: "a hook runs twice",
    edits: [
      {
        file: "transaction/afterHooks.js",
        find: "    return Effect.forEach(hooks, ({ hook, origin }) => {",
        replace: "    return Effect.forEach([...hooks, ...hooks.slice(-1)], ({ hook, origin }) => {"
      }
    ]
  },
  {
    name: "one-too-many",
    meaning: "a pool opens one connection more than its limit",
    edits: [
      {
        file: "pool/connectionOpener.js",
        find: "const room = maxTotal(options.pool) - connections.all.size - connecting;",
        replace: "const room = maxTotal(options.pool) + 1 - connections.all.size - connecting;"
      }
    ]
  },
  {
    name: "late-cancel",
    meaning: "a connection is used again while a cancel request is on its way",
    edits: [
      {
        file: "connection/exchangeConnection.js",
        find: "this.cancellation.holdBack();",
        replace: "{ this.cancellation.attempts = undefined; this.finish(exchange, failure); }"
      }
    ]
  },
  {
    name: "no-timeout",
    meaning: "a caller waits for a connection without an end",
    edits: [{ file: "pool/waitQueue.js", find: ", () => this.rejectTimedOut());", replace: ", () => {});" }]
  },
  {
    name: "stale-read",
    meaning: "a replica that is behind counts as caught up",
    edits: [
      {
        file: "consistency/judgeFreshness.js",
        find: "return timeline === token.timeline && lsn >= token.lsn ?",
        replace: "return timeline === token.timeline ?"
      }
    ]
  },
  {
    name: "kept-savepoint",
    meaning: "a savepoint is released and not rolled back",
    edits: [
      {
        file: "transaction/levelRollback.js",
        find: "connection.undo(outermost.undoSteps,",
        replace: "connection.undo(outermost.undoSteps.slice(-1),"
      }
    ]
  },
  {
    name: "no-watchdog",
    meaning: "a dead connection is never given up",
    edits: [
      {
        file: "connection/watchdog.js",
        find: "    schedule({ due }) {",
        replace: "    schedule({ due }) {\n        if (due > 0) return;"
      }
    ]
  },
  {
    name: "early-status",
    meaning: "a transaction that is in progress counts as undone",
    edits: [
      {
        file: "outcome/transactionStatus.js",
        find: `        case "in progress":
            return "open";`,
        replace: `        case "in progress":
            return "undone";`
      }
    ]
  },
  {
    name: "leaked-socket",
    meaning: "the socket of a cancelled connect stays open",
    edits: [
      {
        file: "connection/startup.js",
        find: `            return;
        settle();
        client.connection.stream.destroy();
    };`,
        replace: `            return;
        settle();
    };`
      }
    ]
  }
]
