/**
 * The options of the commit of a unit of work: the order in which its transactions are committed,
 * and the check before the first COMMIT.
 */

/**
 * Rule for the order of commits: `safest` is by the risk of a failure, `touched` by the first use,
 * and a list of names is the order itself, with other databases after it.
 */
export type Order = "safest" | "touched" | ReadonlyArray<string>

/** Options of the commit of a group of transactions. */
export interface CommitOptions {
  readonly order: Order
  /** True if each server checks its deferred constraints before the first COMMIT. */
  readonly checked: boolean
  /** True if all transactions but one are prepared before the last one decides. */
  readonly isTwoPhase: boolean
  /**
   * True if nested transactions that forks have left open are rolled back at once. False if the end
   * waits for them.
   */
  readonly leavesForks: boolean
}

/** Options of the end of a unit. */
export interface EndOptions {
  readonly order?: "safest" | "touched" | ReadonlyArray<{ readonly databaseName: string }> | undefined
  readonly checkFirst?: boolean | undefined
  readonly atomic?: "twoPhase" | undefined
}

/** Returns the requested order of commits, by the names of databases. */
const orderOf = (order: NonNullable<EndOptions["order"]>): Order =>
  typeof order === "string" ? order : order.map((_) => _.databaseName)

/** Options of the end that a part requires of its unit. */
export type RequiredEnd = Omit<EndOptions, "order"> & { readonly order?: Order | undefined }

/** Returns the options of the end that a part requires. */
export const requiredEnd = ({ atomic, checkFirst, order }: EndOptions): RequiredEnd => ({
  atomic,
  checkFirst,
  order: order === undefined ? undefined : orderOf(order)
})

/**
 * Returns the commit options of a unit. The defaults are the order `safest` and a check before
 * the first COMMIT. The unit of a request does not wait for forks.
 */
export const commitOptionsOf = ({ atomic, checkFirst, order }: EndOptions, isRequest = false): CommitOptions => ({
  order: orderOf(order ?? "safest"),
  checked: checkFirst ?? true,
  isTwoPhase: atomic === "twoPhase",
  leavesForks: isRequest
})

/** Returns the conflict of a unit's options with those that a part requires, if there is one. */
export const conflictOfCommit = (
  own: CommitOptions,
  { checkFirst, order }: RequiredEnd
): { readonly option: string; readonly outer: string; readonly inner: string } | undefined => {
  if (order !== undefined && own.order !== "safest" && String(order) !== String(own.order))
    return { option: "order", outer: String(own.order), inner: String(order) }
  return checkFirst === false && own.checked ? { option: "checkFirst", outer: "true", inner: "false" } : undefined
}

/** Returns the commit options of a unit after it has taken those of a part. */
export const raiseCommitOptions = (own: CommitOptions, { atomic, checkFirst, order }: RequiredEnd): CommitOptions => ({
  ...own,
  order: order ?? own.order,
  checked: checkFirst ?? own.checked,
  isTwoPhase: own.isTwoPhase || atomic === "twoPhase"
})
