import { HttpApiClient, type HttpClientResponse } from "@effect/platform"
import { Effect } from "effect"
import { Api } from "./api.js"
import type { Attempt, TodoState } from "./ledger.js"
import type { Todo } from "./todos.js"

export interface Failure {
  readonly _tag: string
  readonly message: string
}

/** A change, with a check if it is stored. */
export interface Change {
  readonly what: NonNullable<Attempt["change"]>["what"]
  readonly id: string
  readonly isStored: (todo: Todo | undefined) => boolean
  readonly state: TodoState | undefined
}

/** A request of the plan. */
export interface Task {
  readonly send: (request: string) => Effect.Effect<readonly [unknown, HttpClientResponse.HttpClientResponse], Failure>
  readonly change: Change | undefined
}

const rounds = 40
export const total = rounds * 5

const searches = ["lake", "o'hare", "100%", "new york", "INTL", "_", "san", ""]

/**
 * Returns two hundred requests: in each of forty rounds a todo is created, the todo of two rounds before is renamed, every second todo is
 * deleted two rounds after that, and lists and searches run in between.
 */
export const plan = (baseUrl: string, name: string) =>
  Effect.gen(function* () {
    const client = yield* HttpApiClient.make(Api, { baseUrl })
    const idOf = (todo: number) => `${name}-${todo}`
    const ask = (request: string) => ({ headers: { "x-request-id": request }, withResponse: true }) as const

    const create = (todo: number): Task => {
      const id = idOf(todo)
      const title = `todo ${todo}`
      return {
        send: (request) => client.todos.create({ payload: { id, title }, ...ask(request) }),
        change: { what: "todo.created", id, isStored: (found) => found !== undefined, state: { title, done: false } }
      }
    }
    const update = (todo: number): Task => {
      const id = idOf(todo)
      const state = { title: `todo ${todo}, renamed`, done: todo % 3 === 0 }
      return {
        send: (request) => client.todos.update({ path: { id }, payload: state, ...ask(request) }),
        change: { what: "todo.updated", id, isStored: (found) => found?.title === state.title, state }
      }
    }
    const remove = (todo: number): Task => {
      const id = idOf(todo)
      return {
        send: (request) => client.todos.remove({ path: { id }, ...ask(request) }),
        change: { what: "todo.deleted", id, isStored: (found) => found === undefined, state: undefined }
      }
    }
    const list = (done: boolean | undefined): Task => ({
      send: () => client.todos.list({ urlParams: { done }, withResponse: true }),
      change: undefined
    })
    const search = (text: string, page: number): Task => ({
      send: () => client.records.page({ urlParams: { search: text, page, size: 20 }, withResponse: true }),
      change: undefined
    })

    const tasks = Array.from({ length: rounds }, (_, round) => [
      create(round),
      search(searches[round % searches.length] ?? "", 1),
      round < 2 ? list(undefined) : update(round - 2),
      round < 4 || round % 2 === 1 ? list(round % 4 === 1) : remove(round - 4),
      search("", round + 1)
    ]).flat()

    const lookUp = (id: string) =>
      client.todos.get({ path: { id } }).pipe(Effect.catchTag("TodoNotFound", () => Effect.succeed(undefined)))

    return { tasks, lookUp }
  })
