/** The open databases of the process by their identities; a program may open a database several times. */
export class DecidingDatabases<A> {
  private readonly byKey = new Map<string, Set<A>>()

  /** Adds a database that is open. */
  add(key: string, database: A): void {
    this.byKey.set(key, (this.byKey.get(key) ?? new Set()).add(database))
  }

  /** Removes a database that is closed. */
  remove(key: string, database: A): void {
    const all = this.byKey.get(key)
    all?.delete(database)
    if (all?.size === 0) this.byKey.delete(key)
  }

  /** Returns the handles of a database. */
  of(key: string): ReadonlyArray<A> {
    return [...(this.byKey.get(key) ?? [])]
  }

  /** All databases that are open. */
  get all(): ReadonlyArray<A> {
    return [...this.byKey.values()].flatMap((some) => [...some])
  }
}
