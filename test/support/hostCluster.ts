/** Clusters whose writer may be on any of several hosts, with numbers in a table `item`. */
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import { EmbeddedPostgres } from "effect-db"
import { Db } from "./databases.js"
import { directory } from "./directory.js"
import { query } from "./server.js"

export type Server = EmbeddedPostgres.EmbeddedPostgres.Server

type Host = Pick<Server, "host" | "port">

/** Returns the name that a host has in observations. */
export const nameOf = ({ host, port }: Host): string => `${host}:${port}`

/** Returns the URL of a server with the addresses of these hosts in the place of its own. */
export const urlOf = (server: Host & Pick<Server, "url">, hosts: ReadonlyArray<Host>) =>
  Redacted.make(Redacted.value(server.url()).replace(nameOf(server), hosts.map(nameOf).join()))

/** Starts a cluster, and creates the table; `second` is the first replica if there is only one. */
export const makeCluster = (replicas: number) =>
  Effect.gen(function* () {
    const made = yield* EmbeddedPostgres.make({ directory, replicas })
    yield* query(made.primary.url(), "CREATE TABLE item (n int PRIMARY KEY)")
    yield* made.awaitReplicas
    const [first = assert.fail("no replica"), second = first] = made.replicas
    return { ...made, first, second, all: [made.primary, ...made.replicas] }
  })

/** Inserts a number. */
export const insertNumber = (n: number) => Effect.flatMap(Db.writer, (sql) => sql`INSERT INTO item VALUES (${n})`)

/** Returns the numbers on a server. */
export const numbersOn = (server: Server) =>
  Effect.map(query<{ n: number }>(server.url(), "SELECT n FROM item ORDER BY n"), (rows) => rows.map(({ n }) => n))
