/**
 * The comparison of two endpoints.
 */
import type { Endpoint } from "../../DatabaseConfig.js"

/** Checks if connections to both endpoints go to the same place. A source of hosts may reuse a name. */
export const isSameEndpoint = (a: Endpoint, b: Endpoint): boolean =>
  a.name === b.name && a.host === b.host && a.port === b.port && a.address === b.address
