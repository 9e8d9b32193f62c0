/**
 * The prepared statements of one connection, by text and search path. The cache is bounded and
 * removes the least recently used first.
 */
import type { RowDecoder } from "./rowDecoder.js"

/** Prepared statement of one connection. */
export interface PreparedStatement {
  readonly name: string
  /** True if the server has parsed it. */
  parsed: boolean
  /**
   * The decoder of the rows, after the server has described the columns. The columns cannot change
   * without an error.
   */
  decoder: RowDecoder | undefined
  /** The value of the use counter at its last use. */
  lastUse: number
}

/** The longest text that is cached, in characters. A longer one is unlikely to be used again. */
const maxTextLength = 16_384

/**
 * Cache of prepared statements.
 *
 * @internal
 */
export class StatementCache {
  /** The statements with the search path of the session. */
  private readonly inSessionPath = new Map<string, PreparedStatement>()
  /**
   * The statements with other search paths. In another schema, the names of a text mean other
   * tables, and its parameters and columns have other types.
   */
  private byPath: Map<string, Map<string, PreparedStatement>> | undefined = undefined
  private toClose: Array<string> = []
  private size = 0
  private created = 0
  private uses = 0

  constructor(private readonly limit: number) {}

  /** Checks if statements may be prepared. */
  get isEnabled(): boolean {
    return this.limit > 0
  }

  /**
   * Returns the prepared statement of a text, and adds it if it is missing. Returns `undefined` if
   * the cache is disabled or the text is too long.
   */
  getOrAdd(text: string, path: string | undefined): PreparedStatement | undefined {
    const known = this.inPath(path)?.get(text)
    if (known !== undefined) {
      // a counter, because a move to the end of the map would delete and add an entry for each use,
      // and V8 copies a map when enough of its entries are deleted
      known.lastUse = ++this.uses
      return known
    }
    if (this.limit === 0 || text.length > maxTextLength) return undefined
    const created: PreparedStatement = {
      name: `s${++this.created}`,
      parsed: false,
      decoder: undefined,
      lastUse: ++this.uses
    }
    this.add(text, path, created)
    if (++this.size > this.limit) this.removeLeastRecentlyUsed()
    return created
  }

  /** Removes a statement. If it is prepared on the server, a later exchange closes it there. */
  remove(text: string, path: string | undefined): void {
    const statements = this.inPath(path)
    const known = statements?.get(text)
    if (statements === undefined || known === undefined) return
    statements.delete(text)
    this.size--
    if (path !== undefined && statements.size === 0) this.byPath?.delete(path)
    if (known.parsed) this.toClose.push(known.name)
  }

  private inPath(path: string | undefined): Map<string, PreparedStatement> | undefined {
    return path === undefined ? this.inSessionPath : this.byPath?.get(path)
  }

  private add(text: string, path: string | undefined, created: PreparedStatement): void {
    const statements = this.inPath(path)
    if (statements !== undefined) statements.set(text, created)
    else if (path !== undefined) {
      this.byPath ??= new Map()
      this.byPath.set(path, new Map([[text, created]]))
    }
  }

  /** Returns all statements by search path. */
  private get all(): ReadonlyArray<readonly [path: string | undefined, statements: Map<string, PreparedStatement>]> {
    return [[undefined, this.inSessionPath], ...(this.byPath ?? none)]
  }

  /**
   * Removes the least recently used statement. The search is short compared with the parse that
   * follows.
   */
  private removeLeastRecentlyUsed(): void {
    let oldest: string | undefined
    let oldestPath: string | undefined
    let least = Number.POSITIVE_INFINITY
    for (const [path, statements] of this.all) {
      for (const [text, { lastUse }] of statements) {
        if (lastUse >= least) continue
        oldest = text
        oldestPath = path
        least = lastUse
      }
    }
    if (oldest !== undefined) this.remove(oldest, oldestPath)
  }

  /** Removes all statements: after a change of the schema the server may reject earlier plans. */
  removeAll(): void {
    for (const [, statements] of this.all) {
      for (const known of statements.values()) if (known.parsed) this.toClose.push(known.name)
    }
    this.inSessionPath.clear()
    this.byPath = undefined
    this.size = 0
  }

  /** Removes and returns the names of the statements that must be closed on the server. */
  drainToClose(): ReadonlyArray<string> {
    if (this.toClose.length === 0) return none
    const names = this.toClose
    this.toClose = []
    return names
  }
}

const none: ReadonlyArray<never> = []
