import * as net from "node:net"
import * as Effect from "effect/Effect"
import Pg from "pg"

const sessions = new Map<string, Promise<Pg.Client>>()

const connect = async (url: string): Promise<Pg.Client> => {
  const socket = new net.Socket()
  const client = new Pg.Client({ connectionString: url, ssl: false, stream: () => socket })
  const forget = () => void sessions.delete(url)
  client.on("error", forget)
  client.on("end", forget)
  await client.connect()
  // an open session keeps no process alive
  socket.unref()
  return client
}

/**
 * Runs one statement by the session that this process keeps open to that URL, and returns its rows: a server needs 30 ms of CPU time for a
 * new session, and each test creates and drops databases. A failure is a defect: fixtures must work.
 */
export const administer = <Row extends Record<string, unknown> = Record<string, unknown>>(
  url: string,
  sql: string,
  params: ReadonlyArray<unknown> = []
): Effect.Effect<ReadonlyArray<Row>> =>
  Effect.promise(async () => {
    const session = sessions.get(url) ?? connect(url)
    sessions.set(url, session)
    return (await (await session).query<Row>(sql, [...params])).rows
  })
