/**
 * The failure of a connect to several hosts.
 */
import { type ConnectFailure, mayPass } from "./connectFailure.js"

/**
 * Combines the failures of all hosts of a server. A permanent failure takes precedence. The failure of a host
 * that is down comes before the failure of a host with another role, because the host that is down
 * may have the required role.
 */
export const combineFailures = (
  failures: ReadonlyArray<readonly [name: string, failure: ConnectFailure]>
): ConnectFailure => {
  const [only] = failures
  if (only !== undefined && failures.length === 1) return only[1]
  const all = failures.map(([, failure]) => failure)
  const last = all.at(-1)
  const decisive =
    all.find((failure) => !mayPass(failure) && failure.reason !== "protocol") ??
    all.find((failure) => mayPass(failure) && failure.reason !== "wrongRole") ??
    all.find(mayPass) ??
    last
  const message = failures.map(([name, { error }]) => `${name}: ${error.message}`).join("; ")
  return {
    reason: decisive?.reason ?? "unreachable",
    isPermanent: decisive?.isPermanent,
    error: new Error(message, { cause: last?.error })
  }
}
