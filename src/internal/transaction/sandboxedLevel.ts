/**
 * The state of a level that only a sandbox needs. In a sandbox one transaction of the server stands for
 * several of the program.
 */
import type { StatementFailure } from "../connection/failure.js"
import type { ErrorLocation } from "../connection/statementFailure.js"

/**
 * Place of a level in a sandbox.
 *
 * - `sandbox`: the one transaction of the server.
 * - `emulated`: the outermost transaction of the program. Its end acts as COMMIT.
 * - `independent`: a transaction of the program inside of another one that does not depend on it.
 * - `part`: a savepoint of the program.
 */
export type SandboxPlace = "sandbox" | "emulated" | "independent" | "part"

const undoneText =
  "a transaction was rolled back after independent work inside of it (requiresNew, independent), which a server keeps and a sandbox cannot: use TestDatabase.layerTemplate for this test"

/** State of a level in a sandbox. */
export class SandboxedLevel {
  /** The failure of a transaction that a sandbox cannot have, such as one of a higher isolation. */
  refused: StatementFailure | undefined = undefined
  /** The settings that end with an emulated transaction. */
  readonly localSettings = new Set<string>()
  /** True if a statement of the level may have written. */
  private hasWritten = false
  /** True if the level contains work of an independent one, which a rollback must not undo. */
  private holdsIndependent = false

  constructor(
    readonly place: SandboxPlace,
    private readonly around: SandboxedLevel | undefined
  ) {}

  /** The emulated transaction that the level belongs to, if there is one. */
  get emulated(): SandboxedLevel | undefined {
    return this.place === "emulated" ? this : this.around?.emulated
  }

  /** Records a write, which is also one of the levels around, up to an independent one. */
  recordWrite(): void {
    if (this.hasWritten) return
    this.hasWritten = true
    if (this.place !== "independent") this.around?.recordWrite()
  }

  /** Records that work which is independent of the level was done in it. */
  recordIndependent(): void {
    this.holdsIndependent = true
  }

  /**
   * Passes independent work to the level around at the end of a level. If the level was undone, its
   * sandbox has undone the work with it, unlike a server, so the levels around refuse further
   * statements.
   */
  onEnd(isKept: boolean, location: ErrorLocation): void {
    const { around, holdsIndependent, place } = this
    if (isKept) {
      const hasWork = holdsIndependent || (place === "independent" && this.hasWritten)
      if (hasWork && place !== "emulated") around?.recordIndependent()
    } else if (holdsIndependent) {
      around?.refuse({ _tag: "QueryFailed", ...location, cause: new Error(undoneText) })
    }
  }

  private refuse(failure: StatementFailure): void {
    this.refused = failure
    this.around?.refuse(failure)
  }
}
