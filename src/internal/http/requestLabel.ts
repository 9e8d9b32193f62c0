/**
 * The label of a request, as it appears in observations, in `pg_stat_activity` and in the log of the
 * server.
 */
import type * as Fiber from "effect/Fiber"
import type * as Tracer from "effect/Tracer"
import type { WorkLabel } from "../../Transaction.js"
import type { Describe } from "../statement/workLabel.js"

/** Data of a request, for the comments behind its statements. */
interface RequestDescription {
  readonly method: string
  /** The pattern of the route; the path if no router has matched yet. */
  readonly route: string
  readonly requestId: string | undefined
  /** The span around the first statement, in the format of W3C Trace Context. */
  readonly traceparent: string | undefined
}

/** Settings of the labels of requests. */
export interface LabelSettings {
  readonly applicationName?: boolean | undefined
  readonly sqlComment?:
    | "route"
    | "trace"
    | ((request: RequestDescription) => Readonly<Record<string, string | undefined>>)
    | undefined
}

const maxIdLength = 100

/** Returns an id if it is short and printable. A client may send any text as the id. */
const checkedId = (id: string | undefined): string | undefined =>
  id !== undefined && id.length <= maxIdLength && /^[\x21-\x7e]+$/.test(id) ? id : undefined

/** Returns a path without its query, which may hold secrets. */
export const pathOf = (url: string): string => url.replace(/[?#].*$/s, "")

const traceparentOf = (span: Tracer.AnySpan | undefined): string | undefined =>
  span === undefined ? undefined : `00-${span.traceId}-${span.spanId}-${span.sampled ? "01" : "00"}`

const commentFor = (
  comment: NonNullable<LabelSettings["sqlComment"]>,
  described: RequestDescription
): WorkLabel["comment"] => {
  const { method, requestId, route, traceparent } = described
  if (typeof comment === "function") return comment(described)
  return comment === "route" ? { method, route } : { method, route, request_id: requestId, traceparent }
}

/**
 * Makes the label of a request. Its comment counts as unique unless it has only the method and the
 * pattern of the route.
 */
const workLabelOf = (
  described: RequestDescription,
  { applicationName, sqlComment }: LabelSettings,
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

/** Description of a request, for requests of any library. */
export interface HttpRequestInfo {
  readonly method: string
  /** Returns the pattern of the route, if a router has matched already. */
  readonly pattern: (fiber: Fiber.RuntimeFiber<unknown, unknown>) => string | undefined
  readonly path: () => string
  readonly requestId: () => string | undefined
}

/**
 * Makes the function that labels a request. The label is made at the first statement, and again at
 * a statement after a router has matched. A request without a statement costs nothing.
 */
export const makeLabeler = <Request>(
  request: Request,
  describe: (request: Request) => HttpRequestInfo,
  settings: LabelSettings
): Describe => {
  let info: HttpRequestInfo | undefined
  let label: WorkLabel | undefined
  let labeledRoute: string | undefined
  return (fiber) => {
    info ??= describe(request)
    const { method, path, pattern, requestId } = info
    const route = pattern(fiber)
    if (label !== undefined && labeledRoute === route) return label
    labeledRoute = route
    const described = {
      method,
      route: route ?? path(),
      requestId: checkedId(requestId()),
      traceparent: settings.sqlComment === undefined ? undefined : traceparentOf(fiber.currentSpan)
    }
    label = workLabelOf(described, settings, route !== undefined)
    return label
  }
}
