import { ConfigInvalid } from "../../DatabaseError.js"

/**
 * Makes the refusal of a function that needs a session, behind a transaction pooler. Otherwise
 * notifications would not arrive, or a lock would belong to the session of another client.
 */
export const requiresSessionMode = (database: string, what: string): ConfigInvalid =>
  new ConfigInvalid({
    database,
    setting: "mode",
    given: '"transactionPooler"',
    expected: `"session" for ${what}: open a database with the server's own address`
  })
