import { ConfigInvalid } from "../../DatabaseError.js"

/**
 * Builds the error of a function that needs a session of its own, for a database behind a
 * transaction pooler. There, notifications would not arrive, and a lock would belong to a session
 * that other clients use.
 */
export const sessionModeRequired = (database: string, what: string): ConfigInvalid =>
  new ConfigInvalid({
    database,
    setting: "mode",
    given: '"transactionPooler"',
    expected: `"session" for ${what}: open a database with the server's own address`
  })
