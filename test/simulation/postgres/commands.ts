/**
 * The commands that the scripted server understands: those of the library, by a part of their text
 * that no other command has, and those of the calls of the simulation, by their whole text. Any other
 * command fails the simulation.
 */
import { loop } from "../loop/loop.js"
import type { Session } from "./session.js"
import { type Change, formatLsn, walFile } from "./store.js"
import type { Column } from "./wire.js"

/** Reason for which a command waits. */
export type Blocker =
  | { readonly kind: "lock"; readonly key: string }
  /** A firm sleep can be neither cancelled nor timed out. */
  | { readonly kind: "sleep"; readonly millis: number; readonly isFirm?: true }

/** Result of a command. */
export interface CommandResult {
  readonly tag: string
  readonly rows?: ReadonlyArray<ReadonlyArray<string | null>>
}

/** Arguments of a command: its parameters, and the groups of its pattern. */
interface Given {
  readonly values: ReadonlyArray<string | null>
  readonly groups: ReadonlyArray<string>
}

type Body = (session: Session, given: Given) => Generator<Blocker, CommandResult, void>

/** Command of the scripted server. */
interface Command {
  readonly pattern: RegExp | string
  /** The columns; `undefined` for a command without rows. */
  readonly columns?: ReadonlyArray<Column>
  /** Commands that end a transaction, or may run in a failed one. */
  readonly isControl?: boolean
  readonly run: Body
}

/** Error of a command, by its SQLSTATE. */
export class SqlFailure extends Error {
  constructor(
    readonly code: string,
    message: string,
    readonly relation?: { readonly schema: string; readonly table: string }
  ) {
    super(message)
  }
}

const textColumn = (name: string): Column => ({ name, type: 25 })
const columnsOf = (...names: ReadonlyArray<string>): ReadonlyArray<Column> => names.map(textColumn)

const intColumn = (name: string): Column => ({ name, type: 23 })

const select = (...rows: ReadonlyArray<ReadonlyArray<string | null>>): CommandResult => ({
  tag: `SELECT ${rows.length}`,
  rows
})

const bool = (value: boolean): string => (value ? "t" : "f")

/** Creates a command without waits. */
const plain = (
  pattern: RegExp | string,
  columns: ReadonlyArray<Column> | undefined,
  run: (session: Session, given: Given) => CommandResult,
  isControl = false
): Command => ({
  pattern,
  ...(columns === undefined ? {} : { columns }),
  isControl,
  run: function* (session, given) {
    return run(session, given)
  }
})

/** Columns of the run of a server, as `runColumns` of the library. */
const runOf = ({ server }: Session): ReadonlyArray<string | null> => [
  server.systemId,
  server.isStandby ? null : walFile(server.timeline, server.store.insertLsn),
  String(server.startedAt),
  server.recoveredTo === undefined ? null : formatLsn(server.recoveredTo)
]

const idOf = (session: Session): ReadonlyArray<string | null> => {
  const { server, transaction } = session
  return [
    transaction?.xid === undefined ? null : String(transaction.xid),
    server.isStandby ? null : formatLsn(server.store.insertLsn)
  ]
}

/** Inserts a row of `effect_db.outcome`; a row that is there, or arrives meanwhile, violates its key. */
function* insertMarker(session: Session, id: string, isFence: boolean, skips: boolean): Generator<Blocker, boolean> {
  session.write({ kind: "marker", id, isFence }, false)
  const { store } = session.server
  if (!store.hasOutcomeTable) throw new SqlFailure("42P01", 'relation "effect_db.outcome" does not exist')
  yield { kind: "lock", key: `marker:${id}` }
  if (store.markers.has(id) || session.hasOwnMarker(id)) {
    if (skips) return false
    throw new SqlFailure("23505", 'duplicate key value violates unique constraint "outcome_pkey"', {
      schema: "effect_db",
      table: "outcome"
    })
  }
  session.write({ kind: "marker", id, isFence })
  return true
}

const settings = /^SET (LOCAL )?(statement_timeout|lock_timeout|idle_in_transaction_session_timeout) = (\d+)$/

/** The commands of transactions and settings. */
const control: ReadonlyArray<Command> = [
  plain(
    /^BEGIN(?: ISOLATION LEVEL (READ COMMITTED|REPEATABLE READ|SERIALIZABLE))?,?(?: (READ ONLY|READ WRITE))?$/,
    undefined,
    (session, { groups: [isolation, access] }) => {
      session.begin(isolation, access)
      return { tag: "BEGIN" }
    }
  ),
  {
    pattern: /^COMMIT$/,
    isControl: true,
    run: function* (session) {
      const pause = session.commitPause()
      if (pause > 0) yield { kind: "sleep", millis: pause, isFirm: true }
      // the connection may have been lost before the commit
      if (session.isClosed) return { tag: "COMMIT" }
      return { tag: session.commit() ? "COMMIT" : "ROLLBACK" }
    }
  },
  plain(
    /^ROLLBACK$/,
    undefined,
    (session) => {
      session.rollback()
      return { tag: "ROLLBACK" }
    },
    true
  ),
  plain(/^SAVEPOINT (\w+)$/, undefined, (session, { groups: [name = ""] }) => {
    session.setSavepoint(name)
    return { tag: "SAVEPOINT" }
  }),
  plain(/^RELEASE SAVEPOINT (\w+)$/, undefined, (session, { groups: [name = ""] }) => {
    session.releaseSavepoint(name)
    return { tag: "RELEASE" }
  }),
  plain(
    /^ROLLBACK TO SAVEPOINT (\w+)$/,
    undefined,
    (session, { groups: [name = ""] }) => {
      session.rollbackTo(name)
      return { tag: "ROLLBACK" }
    },
    true
  ),
  plain(settings, undefined, (session, { groups: [local, name = "", value] }) => {
    if (local === undefined) throw new SqlFailure("XX000", "the simulation sets timeouts by SET LOCAL alone")
    session.setLocal(name, Number(value))
    return { tag: "SET" }
  }),
  plain(/^SET CONSTRAINTS ALL IMMEDIATE$/, undefined, () => ({ tag: "SET CONSTRAINTS" }))
]

/** The queries of the library about servers and positions. */
const servers: ReadonlyArray<Command> = [
  plain(/^SELECT 1$/, [intColumn("?column?")], () => select(["1"])),
  plain(/^SELECT CASE WHEN pg_catalog\.pg_is_in_recovery\(\) OR /, columnsOf("case"), (session) => {
    if (session.server.isStandby || session.isReadOnlyByDefault) {
      throw new SqlFailure("22P02", "invalid input syntax for type integer: its server takes no writes")
    }
    return select(["1"])
  }),
  plain(/^SELECT pg_is_in_recovery\(\)::text, current_setting/, columnsOf("standby", "read_only"), (session) =>
    select([session.server.isStandby ? "true" : "false", session.isReadOnlyByDefault ? "on" : "off"])
  ),
  plain(
    /current_setting\('effect_db\.commit', true\)/,
    columnsOf("system_identifier", "lsn", "wal", "tli", "flushed", "commit", "size"),
    (session) => {
      const { server } = session
      const { flushedLsn, insertLsn } = server.store
      return select([
        server.systemId,
        formatLsn(insertLsn),
        server.isStandby ? null : walFile(server.timeline, insertLsn),
        server.isStandby && server.isStreaming ? String(server.receivedTimeline) : null,
        server.isStandby ? null : formatLsn(flushedLsn),
        session.commitInfo,
        "8192"
      ])
    }
  ),
  plain(
    /^SELECT s\.system_identifier, p\.standby::pg_catalog\.text/,
    columnsOf("system_identifier", "standby", "wal", "lsn", "receiver", "ago"),
    (session) => {
      const { server } = session
      const { flushedLsn, insertLsn } = server.store
      return select([
        server.systemId,
        server.isStandby ? "true" : "false",
        server.isStandby ? null : walFile(server.timeline, insertLsn),
        formatLsn(server.isStandby ? insertLsn : flushedLsn),
        server.isStandby && server.isStreaming ? `streaming ${server.receivedTimeline}` : null,
        server.isStandby ? String((loop.now - server.replayedAt) / 1000) : null
      ])
    }
  ),
  plain(/^SELECT pg_catalog\.set_config\('effect_db\.commit', /, columnsOf("set_config"), (session) => {
    const text = `${session.local("synchronous_commit") === 0 ? "off" : "on"} ${session.transaction?.xid ?? ""}`
    session.saveCommitInfo(text)
    return select([text])
  }),
  plain(
    /FROM pg_catalog\.pg_stat_activity WHERE pid = (\d+)$/,
    columnsOf("case"),
    ({ server }, { groups: [processId] }) => {
      const other = server.sessions.get(Number(processId))
      return other === undefined ? select() : select([other.isBusy ? "working" : "waiting"])
    }
  )
]

/** The proofs of the outcome of a COMMIT. */
const outcomes: ReadonlyArray<Command> = [
  plain(/^SELECT pg_catalog\.pg_current_xact_id_if_assigned\(\), CASE[^,]*$/, columnsOf("xid", "lsn"), (session) =>
    select(idOf(session))
  ),
  plain(
    /^SELECT pg_catalog\.pg_current_xact_id_if_assigned\(\), .*FROM pg_catalog\.pg_control_system\(\) s$/s,
    columnsOf("xid", "lsn", "system_identifier", "wal_file", "started_at", "recovered_to"),
    (session) => select([...idOf(session), ...runOf(session)])
  ),
  plain(
    /^SELECT r\.\*, CASE WHEN .*pg_xact_status\(\$3/s,
    columnsOf("system_identifier", "wal_file", "started_at", "recovered_to", "status"),
    (session, { values: [systemId, timeline, xid] }) => {
      const { server } = session
      const run = runOf(session)
      const isSame = server.systemId === systemId && run[1]?.slice(0, 8) === timeline
      return select([...run, isSame ? server.statusOf(Number(xid)) : null])
    }
  ),
  {
    pattern:
      /^SELECT CASE WHEN pg_catalog\.pg_current_xact_id_if_assigned\(\) IS NOT NULL THEN effect_db\.mark_commit\((?:\$1|'([^']+)')\) END$/,
    columns: columnsOf("case"),
    run: function* (session, { groups: [literal], values: [value] }) {
      if (session.transaction?.xid === undefined) return select([null])
      yield* insertMarker(session, literal ?? value ?? "", false, false)
      return select(["t"])
    }
  },
  plain(
    /^SELECT pg_catalog\.set_config\('lock_timeout', '(\d+)', true\),\s+pg_catalog\.set_config\('statement_timeout', '(\d+)', true\),\s+pg_catalog\.set_config\('synchronous_commit', 'off', true\)$/,
    columnsOf("a", "b", "c"),
    (session, { groups: [lock, statement] }) => {
      session.setLocal("lock_timeout", Number(lock))
      session.setLocal("statement_timeout", Number(statement))
      session.setLocal("synchronous_commit", 0)
      return select([lock ?? null, statement ?? null, "off"])
    }
  ),
  {
    pattern: /^INSERT INTO effect_db\.outcome \(id, is_fence\) VALUES \('([^']+)', true\) ON CONFLICT DO NOTHING$/,
    run: function* (session, { groups: [id = ""] }) {
      const isInserted = yield* insertMarker(session, id, true, true)
      return { tag: `INSERT 0 ${isInserted ? 1 : 0}` }
    }
  },
  plain(/^SELECT o\.is_fence FROM effect_db\.outcome o WHERE /, columnsOf("is_fence"), (session, { values: [id] }) => {
    const isFence = session.markerOf(id ?? "")
    return isFence === undefined ? select() : select([bool(isFence)])
  }),
  plain(
    /^SELECT pg_catalog\.pg_is_in_recovery\(\),\s+c\.oid IS NOT NULL/,
    columnsOf("a", "b", "c", "d"),
    ({ server }) => {
      const has = bool(server.store.hasOutcomeTable)
      return select([bool(server.isStandby), has, has, has])
    }
  ),
  {
    pattern: /^SELECT pg_catalog\.pg_advisory_xact_lock\((\d+)\)$/,
    columns: columnsOf("lock"),
    run: function* (_, { groups: [key] }) {
      yield { kind: "lock", key: `advisory:${key}` }
      return select([""])
    }
  },
  plain(/^CREATE (SCHEMA|TABLE|INDEX) IF NOT EXISTS /, undefined, (session, { groups: [kind] }) => {
    if (kind === "TABLE") session.write({ kind: "outcomeTable" })
    return { tag: `CREATE ${kind}` }
  }),
  plain(/^CREATE OR REPLACE FUNCTION effect_db\./, undefined, () => ({ tag: "CREATE FUNCTION" })),
  plain(/^WITH old_marker AS \(/, undefined, (session, { values: [, seconds] }) => {
    const { store } = session.server
    if (!store.hasOutcomeTable) throw new SqlFailure("42P01", 'relation "effect_db.outcome" does not exist')
    const before = loop.now - Number(seconds) * 1000
    const ids = [...store.markers].filter(([, { at }]) => at < before).map(([id]) => id)
    if (ids.length > 0) session.write({ kind: "sweep", ids })
    return { tag: `DELETE ${ids.length}` }
  })
]

/** The texts of the calls of the simulation. The last parameter is the tag of the call. */
export const calls = {
  mark: "SELECT $1::text AS tag",
  insert: "INSERT INTO entry (op) VALUES ($1) RETURNING $2::text AS tag",
  step: "UPDATE counter SET n = n + 1 WHERE id = $1 RETURNING $2::text AS op, $3::text AS tag",
  count: "SELECT count(*)::int AS n, $2::text AS tag FROM entry WHERE op = $1",
  sleep: "SELECT pg_sleep($1), $2::text AS tag",
  fail: "SELECT 1 / 0, $1::text AS tag"
}

const tagOf = (given: Given): string => given.values.at(-1) ?? ""

/** The commands of the calls; each shows its tag to the checks of the server. */
const work: ReadonlyArray<Command> = [
  plain(calls.mark, columnsOf("tag"), (session, given) => {
    session.onCall(tagOf(given))
    return select([tagOf(given)])
  }),
  plain(calls.insert, columnsOf("tag"), (session, given) => {
    session.onCall(tagOf(given))
    session.write({ kind: "entry", op: given.values[0] ?? "" })
    return { tag: "INSERT 0 1", rows: [[tagOf(given)]] }
  }),
  {
    pattern: calls.step,
    columns: columnsOf("op", "tag"),
    run: function* (session, given) {
      session.onCall(tagOf(given))
      const id = Number(given.values[0])
      const change: Change = { kind: "counter", id, op: given.values[1] ?? "" }
      session.write(change, false)
      yield { kind: "lock", key: `counter:${id}` }
      session.checkSnapshot(session.server.store.counters.get(id)?.lsn ?? 0)
      session.write(change)
      return { tag: "UPDATE 1", rows: [[change.op, tagOf(given)]] }
    }
  },
  plain(calls.count, [intColumn("n"), textColumn("tag")], (session, given) => {
    session.onCall(tagOf(given))
    return select([String(session.countEntries(given.values[0] ?? "")), tagOf(given)])
  }),
  {
    pattern: calls.sleep,
    columns: columnsOf("pg_sleep", "tag"),
    run: function* (session, given) {
      session.onCall(tagOf(given))
      yield { kind: "sleep", millis: 1000 * Number(given.values[0]) }
      return select(["", tagOf(given)])
    }
  },
  plain(calls.fail, [intColumn("?column?"), textColumn("tag")], (session, given) => {
    session.onCall(tagOf(given))
    throw new SqlFailure("22012", "division by zero")
  })
]

const all: ReadonlyArray<Command> = [...work, ...control, ...servers, ...outcomes]

/** Command with the groups of its pattern. */
export interface FoundCommand {
  readonly command: Command
  readonly groups: ReadonlyArray<string>
}

const known = new Map<string, FoundCommand>()

/** Matches texts that contain the id of a marker or the name of a savepoint. */
const withId = /'[0-9a-f]{8}-|SAVEPOINT/

/** Finds the command of a text; `undefined` if the server does not know it. */
export const findCommand = (text: string): FoundCommand | undefined => {
  const found = known.get(text)
  if (found !== undefined) return found
  for (const command of all) {
    const { pattern } = command
    const match = typeof pattern === "string" ? (pattern === text ? [text] : null) : pattern.exec(text)
    if (match === null) continue
    // the cast: a group that takes no part is undefined
    const result: FoundCommand = { command, groups: match.slice(1) as ReadonlyArray<string> }
    // texts with ids would fill the memory
    if (!withId.test(text)) known.set(text, result)
    return result
  }
  return undefined
}
