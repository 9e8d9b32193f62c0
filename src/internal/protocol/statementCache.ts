/**
 * The prepared statements of one connection: by text and by where its names are looked up, bounded, the one used longest ago goes first.
 */
import type { RowDecoder } from "./rowDecoder.js"

/** A statement as its connection knows it. */
export interface PreparedStatement {
  readonly name: string
  /** Whether the server has parsed it. */
  parsed: boolean
  /** Its columns, once the server has described them; they cannot change without an error. */
  decoder: RowDecoder | undefined
  /** When it was used last, in uses of any. */
  lastUse: number
}

const maxTextLength = 16_384

/** @internal */
export class StatementCache {
  /** Those whose names are looked up where the session does. */
  private readonly inSessionPath = new Map<string, PreparedStatement>()
  /** The same text means something else where its names are those of another schema, and its parameters and columns have other types. */
  private byPath: Map<string, Map<string, PreparedStatement>> | undefined = undefined
  private toClose: Array<string> = []
  private size = 0
  private created = 0
  private uses = 0

  constructor(private readonly limit: number) {}

  /** The statement of this text, or nothing where it is not worth a name: no room, or a text so long that it is likely one of a kind. */
  getOrAdd(text: string, path: string | undefined): PreparedStatement | undefined {
    const known = this.inPath(path)?.get(text)
    if (known !== undefined) {
      // noted down and not moved to the end: a map that is always written to is always being copied
      known.lastUse = ++this.uses
      return known
    }
    if (this.limit === 0 || text.length > maxTextLength) return undefined
    const fresh: PreparedStatement = {
      name: `s${++this.created}`,
      parsed: false,
      decoder: undefined,
      lastUse: ++this.uses
    }
    this.add(text, path, fresh)
    if (++this.size > this.limit) this.removeLeastRecentlyUsed()
    return fresh
  }

  /** Forgets one statement, and closes it on the server with the next flight. */
  remove(text: string, path: string | undefined): void {
    const some = this.inPath(path)
    const known = some?.get(text)
    if (some === undefined || known === undefined) return
    some.delete(text)
    this.size--
    if (path !== undefined && some.size === 0) this.byPath?.delete(path)
    if (known.parsed) this.toClose.push(known.name)
  }

  private inPath(path: string | undefined): Map<string, PreparedStatement> | undefined {
    return path === undefined ? this.inSessionPath : this.byPath?.get(path)
  }

  private add(text: string, path: string | undefined, fresh: PreparedStatement): void {
    const some = this.inPath(path)
    if (some !== undefined) some.set(text, fresh)
    else if (path !== undefined) {
      this.byPath ??= new Map()
      this.byPath.set(path, new Map([[text, fresh]]))
    }
  }

  /** All of them, by where their names are looked up. */
  private get all(): ReadonlyArray<readonly [path: string | undefined, some: Map<string, PreparedStatement>]> {
    return [[undefined, this.inSessionPath], ...(this.byPath ?? none)]
  }

  /** Forgets the one used longest ago. Whoever makes room this way is about to have a statement parsed, which takes far longer. */
  private removeLeastRecentlyUsed(): void {
    let oldest: string | undefined
    let where: string | undefined
    let least = Number.POSITIVE_INFINITY
    for (const [path, some] of this.all) {
      for (const [text, { lastUse }] of some) {
        if (lastUse >= least) continue
        oldest = text
        where = path
        least = lastUse
      }
    }
    if (oldest !== undefined) this.remove(oldest, where)
  }

  /** Forgets all: after a change of the schema, plans made before it may be refused. */
  removeAll(): void {
    for (const [, some] of this.all) {
      for (const known of some.values()) if (known.parsed) this.toClose.push(known.name)
    }
    this.inSessionPath.clear()
    this.byPath = undefined
    this.size = 0
  }

  /** What the next flight has to close. */
  drainToClose(): ReadonlyArray<string> {
    if (this.toClose.length === 0) return none
    const names = this.toClose
    this.toClose = []
    return names
  }
}

const none: ReadonlyArray<never> = []
