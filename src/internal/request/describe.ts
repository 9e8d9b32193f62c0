/**
 * What a request is called, where its statements are seen from outside: in observations, in `pg_stat_activity`, in the server's log.
 */
import * as HttpRouter from "@effect/platform/HttpRouter"
import type { HttpServerRequest } from "@effect/platform/HttpServerRequest"
import type * as Tracer from "effect/Tracer"
import type { Describe } from "../unit.js"
import type { Work } from "../work.js"

/** A request, as far as its statements tell of it. */
export interface Described {
  readonly method: string
  /** The route's pattern; where no router has matched yet, the path. */
  readonly route: string
  readonly requestId: string | undefined
  /** The span around the first statement, as W3C Trace Context has it. */
  readonly traceparent: string | undefined
}

export interface Naming {
  readonly requestId: ((request: HttpServerRequest) => string | undefined) | undefined
  readonly applicationName: boolean | undefined
  readonly sqlComment:
    | "route"
    | "trace"
    | ((request: Described) => Readonly<Record<string, string | undefined>>)
    | undefined
}

const longestId = 100

/** The client chose it, so it may be anything. */
const checkedId = (id: string | undefined): string | undefined =>
  id !== undefined && id.length <= longestId && /^[\x21-\x7e]+$/.test(id) ? id : undefined

const traceparent = (span: Tracer.AnySpan | undefined): string | undefined =>
  span === undefined ? undefined : `00-${span.traceId}-${span.spanId}-${span.sampled ? "01" : "00"}`

const comment = (asked: NonNullable<Naming["sqlComment"]>, described: Described): Work["comment"] => {
  const { method, requestId, route, traceparent } = described
  if (typeof asked === "function") return asked(described)
  return asked === "route" ? { method, route } : { method, route, request_id: requestId, traceparent }
}

/** Describes a request to whoever asks from inside of it; once, when its route is known. */
export const describe = (request: HttpServerRequest, { applicationName, requestId, sqlComment }: Naming): Describe => {
  let known: Work | undefined
  return (fiber) => {
    if (known !== undefined) return known
    const routed: HttpRouter.RouteContext | undefined = fiber.currentContext.unsafeMap.get(HttpRouter.RouteContext.key)
    const id = checkedId(requestId === undefined ? request.headers["x-request-id"] : requestId(request))
    const described: Described = {
      method: request.method,
      route: routed?.route.path ?? request.url.replace(/[?#].*$/s, ""),
      requestId: id,
      traceparent: sqlComment === undefined ? undefined : traceparent(fiber.currentSpan)
    }
    const route = `${described.method} ${described.route}`
    const work: Work = {
      label: id === undefined ? route : `${route} ${id}`,
      applicationName: applicationName === true ? route : undefined,
      comment: sqlComment === undefined ? undefined : comment(sqlComment, described),
      isUnique: sqlComment !== "route"
    }
    if (routed !== undefined) known = work
    return work
  }
}
