/**
 * The comparison of two endpoints.
 */
import type { Endpoint } from "../../DatabaseConfig.js"

/**
 * Checks if two endpoints with the same name also have the same host, port and address. A source of
 * hosts may reuse a name.
 */
export const isSameEndpoint = (a: Endpoint, b: Endpoint): boolean =>
  a.name === b.name && a.host === b.host && a.port === b.port && a.address === b.address
