/** Caller of a checkout, as reports show it. */
export interface Caller {
  /** The name of its fiber. */
  readonly fiber: string
  /** Its location in the program, if it is known. */
  readonly location: string | undefined
  /** The label of the work that the connection is for. */
  readonly label: string | undefined
}
