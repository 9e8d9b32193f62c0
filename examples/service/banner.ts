import { HttpServer } from "@effect/platform"
import { Console, Effect } from "effect"
import { Servers, shown } from "./servers.js"

/** Returns the URL of the service. */
export const baseUrl = HttpServer.HttpServer.pipe(
  Effect.map(({ address }) =>
    address._tag === "TcpAddress"
      ? `http://${address.hostname === "127.0.0.1" || address.hostname === "0.0.0.0" ? "localhost" : address.hostname}:${address.port}`
      : address.path
  )
)

export const show = Effect.gen(function* () {
  const url = yield* baseUrl
  const servers = yield* Servers
  const databases = (yield* servers.all).map(
    (server) => `  ${server.database.padEnd(6)} ${server.role.padEnd(8)} ${shown(server)}`
  )
  yield* Console.log(`
Ready.

  service         ${url} (a page; the endpoints below it)
  documentation   ${url}/docs
  OpenAPI         ${url}/openapi.json

Databases${servers.embedded ? " (embedded; they go when this ends; passwords are not shown)" : ""}

${databases.join("\n")}

Try

  curl --json '{"id":"milk","title":"Buy milk"}' ${url}/todos
  curl -X PATCH --json '{"done":true}' ${url}/todos/milk
  curl '${url}/todos?done=true'
  curl '${url}/records?search=lake&page=2'
  curl '${url}/events?subject=milk'
  curl -X DELETE ${url}/todos/milk

Ctrl-C stops it.`)
})
