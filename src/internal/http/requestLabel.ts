/**
 * What a request is called, where its statements are seen from outside: in observations, in `pg_stat_activity`, in the server's log.
 */
import type * as Fiber from "effect/Fiber"
import type * as Tracer from "effect/Tracer"
import type { WorkLabel } from "../../Transaction.js"
import type { Describe } from "../statement/workLabel.js"

/** A request, as far as its statements tell of it. */
export interface LabeledRequest {
  readonly method: string
  /** The route's pattern; where no router has matched yet, the path. */
  readonly route: string
  readonly requestId: string | undefined
  /** The span around the first statement, as W3C Trace Context has it. */
  readonly traceparent: string | undefined
}

/** Where the names of requests go. */
export interface LabelOptions {
  /** Whether `pg_stat_activity` shows method and route as the `application_name` of a request's transactions. Default `false`. */
  readonly applicationName?: boolean | undefined
  /**
   * Writes a comment behind each statement, in the format of sqlcommenter: `"route"` for method and route; `"trace"` for these, the
   * request's id and `traceparent`; or what a function gives. Statements whose comments differ each time are not kept prepared, so all
   * but `"route"` cost a parse each. Default: none.
   */
  readonly sqlComment?:
    | "route"
    | "trace"
    | ((request: LabeledRequest) => Readonly<Record<string, string | undefined>>)
    | undefined
}

const longestId = 100

/** The client chose it, so it may be anything. */
const checkedId = (id: string | undefined): string | undefined =>
  id !== undefined && id.length <= longestId && /^[\x21-\x7e]+$/.test(id) ? id : undefined

/** A path without its query, which may hold what nobody else is to know. */
export const pathOf = (url: string): string => url.replace(/[?#].*$/s, "")

const traceparentOf = (span: Tracer.AnySpan | undefined): string | undefined =>
  span === undefined ? undefined : `00-${span.traceId}-${span.spanId}-${span.sampled ? "01" : "00"}`

const commentFor = (
  asked: NonNullable<LabelOptions["sqlComment"]>,
  described: LabeledRequest
): WorkLabel["comment"] => {
  const { method, requestId, route, traceparent } = described
  if (typeof asked === "function") return asked(described)
  return asked === "route" ? { method, route } : { method, route, request_id: requestId, traceparent }
}

/** What the work of a request is for. Without the pattern of its route, its path may be another one each time. */
const workOf = (
  described: LabeledRequest,
  { applicationName, sqlComment }: LabelOptions,
  isPattern: boolean
): WorkLabel => {
  const route = `${described.method} ${described.route}`
  return {
    label: described.requestId === undefined ? route : `${route} ${described.requestId}`,
    applicationName: applicationName === true ? route : undefined,
    comment: sqlComment === undefined ? undefined : commentFor(sqlComment, described),
    isUnique: sqlComment !== "route" || !isPattern
  }
}

/** What is asked of a request, of whatever library it is. */
export interface HttpRequestInfo {
  readonly method: string
  /** The pattern of its route, where that is known by now: a router may find it out inside of the unit of work. */
  readonly pattern: (fiber: Fiber.RuntimeFiber<unknown, unknown>) => string | undefined
  readonly path: () => string
  readonly requestId: () => string | undefined
}

/** Describes a request: once, and once more when its route is known. Nothing is asked of one that touches no database. */
export const makeLabeler = <Request>(
  request: Request,
  ask: (request: Request) => HttpRequestInfo,
  naming: LabelOptions
): Describe => {
  let asked: HttpRequestInfo | undefined
  let known: WorkLabel | undefined
  let by: string | undefined
  return (fiber) => {
    asked ??= ask(request)
    const { method, path, pattern, requestId } = asked
    const route = pattern(fiber)
    if (known !== undefined && by === route) return known
    by = route
    const described = {
      method,
      route: route ?? path(),
      requestId: checkedId(requestId()),
      traceparent: naming.sqlComment === undefined ? undefined : traceparentOf(fiber.currentSpan)
    }
    known = workOf(described, naming, route !== undefined)
    return known
  }
}
