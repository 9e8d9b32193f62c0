import { createHash } from "node:crypto"
import { readFile } from "node:fs/promises"
import { HttpApiBuilder, HttpServerRequest, HttpServerResponse } from "@effect/platform"
import { Effect } from "effect"

const folder = new URL("./page/", import.meta.url)

const html = "text/html; charset=utf-8"
const css = "text/css; charset=utf-8"
const js = "text/javascript; charset=utf-8"

const files: ReadonlyArray<readonly [path: `/${string}`, file: string, contentType: string]> = [
  ["/", "index.html", html],
  ["/page/style.css", "style.css", css],
  ["/page/icon.svg", "icon.svg", "image/svg+xml"],
  ...["main", "api", "audit", "chart", "cluster", "dom", "load", "numbers", "records", "servers", "todos", "watch"].map(
    (name) => [`/page/${name}.js`, `${name}.js`, js] as const
  )
]

/** The policy of the page: it loads files only from this service, sends requests only to it, and cannot be in a frame of another page. */
const policy = [
  "default-src 'none'",
  "connect-src 'self'",
  "img-src 'self'",
  "script-src 'self'",
  "style-src 'self'",
  "base-uri 'none'",
  "form-action 'none'",
  "frame-ancestors 'none'"
].join("; ")

/** Serves a file. Browsers request the file each time, and receive it only if it has changed. */
const serve = (content: Buffer, contentType: string) => {
  const etag = `"${createHash("sha256").update(content).digest("base64url").slice(0, 22)}"`
  const headers = {
    "cache-control": "no-cache",
    "content-security-policy": policy,
    "cross-origin-opener-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    etag
  }
  const whole = HttpServerResponse.uint8Array(content, { contentType, headers })
  const same = HttpServerResponse.empty({ status: 304, headers })
  return Effect.map(HttpServerRequest.HttpServerRequest, (request) =>
    request.headers["if-none-match"] === etag ? same : whole
  )
}

/** The page at `/`: plain files, read once. */
export const layer = HttpApiBuilder.Router.use((router) =>
  Effect.forEach(
    files,
    ([path, file, contentType]) =>
      Effect.flatMap(
        Effect.promise(() => readFile(new URL(file, folder))),
        (content) => router.get(path, serve(content, contentType))
      ),
    { discard: true }
  )
)
