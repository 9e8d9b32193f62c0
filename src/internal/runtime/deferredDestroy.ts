/**
 * The socket of a request that the program sees while the response is held. If the headers seem to
 * be sent, the error handler of Express destroys the socket, which would be too early for a held
 * response.
 */

/** Request of HTTP/1 or HTTP/2. A request that a test has made may have no socket. */
export interface WithSocket {
  readonly socket?: object | null | undefined
}

/**
 * Replaces the `socket` of a request by a proxy that passes calls of `destroy` to `hold`. The
 * returned function restores the socket. Node itself does not use this property.
 */
export const showHeld = (request: WithSocket, hold: (args: ReadonlyArray<unknown>) => void): (() => void) => {
  const before = Object.getOwnPropertyDescriptor(request, "socket")
  const { socket } = request
  if (typeof socket !== "object" || socket === null) return () => {}
  let shown: object | undefined
  const show = (): object =>
    new Proxy(socket, {
      get: (_, name) => {
        const member: unknown = Reflect.get(socket, name)
        if (typeof member !== "function") return member
        if (name !== "destroy") return member.bind(socket)
        return (...args: ReadonlyArray<unknown>) => {
          hold(args)
          return shown
        }
      },
      set: (_, name, value) => Reflect.set(socket, name, value)
    })
  const get = () => {
    shown ??= show()
    return shown
  }
  Object.defineProperty(request, "socket", { configurable: true, enumerable: before?.enumerable ?? false, get })
  return () => {
    if (before === undefined) Reflect.deleteProperty(request, "socket")
    else Object.defineProperty(request, "socket", before)
  }
}
