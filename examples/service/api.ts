import { createRequire } from "node:module"
import { HttpApi, HttpApiEndpoint, HttpApiGroup, HttpApiSchema, OpenApi } from "@effect/platform"
import { Schema } from "effect"
import { Event } from "./audit.js"
import { NotPossible } from "./cluster.js"
import { Broken, Unavailable } from "./failures.js"
import { Load, NewRate } from "./figures.js"
import { Happening } from "./history.js"
import { expected, plainText, strict } from "./input.js"
import { Member } from "./members.js"
import { Killed, State } from "./playground.js"
import { Page } from "./records.js"
import { Refused } from "./refusals.js"
import { NewTodo, Todo, TodoChange, TodoExists, TodoId, TodoNotFound } from "./todos.js"

// by `require`, because the import of JSON into a module is experimental in Node 20
const { version }: { readonly version: string } = createRequire(import.meta.url)("effect-db/package.json")

const id = HttpApiSchema.param("id", TodoId)

const Ask = Schema.Struct({ "x-request-id": Schema.optional(plainText(100)) })

const whole = (least: number, most: number) =>
  Schema.NumberFromString.pipe(Schema.filter((n) => Number.isInteger(n) && n >= least && n <= most)).annotations(
    expected(`a whole number from ${least} to ${most}`)
  )

const Flag = Schema.transform(Schema.Literal("true", "false"), Schema.Boolean, {
  strict: true,
  decode: (text) => text === "true",
  encode: (flag) => (flag ? "true" : "false")
}).annotations(expected("true or false"))

const todos = HttpApiGroup.make("todos")
  .add(
    HttpApiEndpoint.get("list", "/todos")
      .setUrlParams(Schema.Struct({ done: Schema.optional(Flag) }).annotations(strict))
      .addSuccess(Schema.Array(Todo))
  )
  .add(HttpApiEndpoint.get("get")`/todos/${id}`.addSuccess(Todo).addError(TodoNotFound))
  .add(
    HttpApiEndpoint.post("create", "/todos")
      .setHeaders(Ask)
      .setPayload(NewTodo)
      .addSuccess(Todo, { status: 201 })
      .addError(TodoExists)
      .addError(Refused)
  )
  .add(
    HttpApiEndpoint.patch("update")`/todos/${id}`
      .setHeaders(Ask)
      .setPayload(TodoChange)
      .addSuccess(Todo)
      .addError(TodoNotFound)
      .addError(Refused)
  )
  .add(HttpApiEndpoint.del("remove")`/todos/${id}`.setHeaders(Ask).addError(TodoNotFound).addError(Refused))
  .annotate(OpenApi.Description, "Things to do. Each change writes an audit event in the same unit of work.")

const records = HttpApiGroup.make("records")
  .add(
    HttpApiEndpoint.get("page", "/records")
      .setUrlParams(
        Schema.Struct({
          search: Schema.optionalWith(plainText(100), { default: () => "" }),
          page: Schema.optionalWith(whole(1, 1_000_000), { default: () => 1 }),
          size: Schema.optionalWith(whole(1, 100), { default: () => 20 })
        }).annotations(strict)
      )
      .addSuccess(Page)
  )
  .annotate(OpenApi.Description, "Airports, read from a replica.")

const audit = HttpApiGroup.make("audit")
  .add(
    HttpApiEndpoint.get("events", "/events")
      .setUrlParams(Schema.Struct({ subject: Schema.optional(plainText(200)) }).annotations(strict))
      .addSuccess(Schema.Array(Event))
  )
  .annotate(OpenApi.Description, "What was changed, from the second database; the latest hundred.")

const servers = HttpApiGroup.make("servers")
  .add(HttpApiEndpoint.get("state", "/servers").addSuccess(State))
  .annotate(
    OpenApi.Description,
    "The state of the servers: if the service has started them itself, and if a replica is frozen."
  )

const View = Schema.Struct({
  embedded: Schema.Boolean.annotations({ description: "True if the service has started the servers itself" }),
  servers: Schema.Array(Member),
  events: Schema.Array(Happening)
}).annotations({ identifier: "Cluster" })

const cluster = HttpApiGroup.make("cluster")
  .add(HttpApiEndpoint.get("view", "/cluster").addSuccess(View))
  .annotate(OpenApi.Description, "The servers of the first database, with their roles, and what has happened to them.")

const Changed = Schema.Struct({ servers: Schema.Array(Schema.String) }).annotations({ identifier: "Changed" })

const failover = HttpApiGroup.make("failover")
  .add(HttpApiEndpoint.post("killPrimary", "/cluster/kill").addSuccess(Changed))
  .add(HttpApiEndpoint.post("promote", "/cluster/promote").addSuccess(Changed))
  .add(HttpApiEndpoint.post("start", "/cluster/start").addSuccess(Changed))
  .addError(NotPossible)
  .addError(Refused)
  .annotate(
    OpenApi.Description,
    "Only on servers that the service has started itself: kill the primary, promote the replica with the most data, and start what is not running."
  )

const load = HttpApiGroup.make("load")
  .add(HttpApiEndpoint.get("figures", "/load").addSuccess(Load))
  .add(HttpApiEndpoint.put("set", "/load").setPayload(NewRate).addSuccess(Load).addError(Refused))
  .annotate(
    OpenApi.Description,
    "Only on servers that the service has started itself: requests to this service at a fixed rate, and their figures by the second."
  )

const playground = HttpApiGroup.make("playground")
  .add(HttpApiEndpoint.post("kill", "/servers/kill").addSuccess(Killed))
  .add(HttpApiEndpoint.post("freeze", "/servers/freeze").addSuccess(State))
  .add(HttpApiEndpoint.post("thaw", "/servers/thaw").addSuccess(State))
  .addError(Refused)
  .annotate(
    OpenApi.Description,
    "Only on servers that the service has started itself: end all connections, or freeze the replica for half a minute, and see that the service keeps working."
  )

export const Api = HttpApi.make("example")
  .add(todos)
  .add(records)
  .add(audit)
  .add(servers)
  .add(cluster)
  .addError(Unavailable)
  .addError(Broken)
  .annotate(OpenApi.Title, "effect-db example service")
  .annotate(OpenApi.Version, version)
  .annotate(
    OpenApi.Description,
    "Todos, airports and an audit trail, in two named databases. There is a page for it at /."
  )

export const EmbeddedApi = Api.add(playground).add(failover).add(load)
