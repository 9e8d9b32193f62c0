/**
 * The URL of a database for a person.
 */
import type { ServerConfig } from "../../DatabaseConfig.js"

/** Returns a URL without a password. */
export const databaseUrl = ({ host, port }: ServerConfig, user: string, database: string): string => {
  const [name, path] = [user, database].map(encodeURIComponent)
  if (host.startsWith("/")) return `postgres://${name}@/${path}?host=${encodeURIComponent(host)}&port=${port}`
  return `postgres://${name}@${host.includes(":") ? `[${host}]` : host}:${port}/${path}`
}
