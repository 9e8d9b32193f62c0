import { ConfigInvalid } from "../../DatabaseError.js"

/** Why there is no session to be had from a transaction pooler. To hear nothing, or to hold a lock that is somebody else's, would be worse. */
export const requiresSessionMode = (database: string, what: string): ConfigInvalid =>
  new ConfigInvalid({
    database,
    setting: "mode",
    given: '"transactionPooler"',
    expected: `"session" for ${what}: open a database with the server's own address`
  })
