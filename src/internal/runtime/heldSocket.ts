/**
 * The socket of a request, as the program sees it while the response is held. The error handler of
 * Express closes the socket if the headers seem to be sent; that would close it before the response
 * is sent.
 */

/** Request of HTTP/1 or HTTP/2. It may have no socket if a test has made it. */
export interface WithSocket {
  readonly socket?: object | null | undefined
}

/**
 * Replaces the `socket` of a request by one that passes calls of `destroy` to `hold`; the returned
 * function restores it. Node itself does not read this property and uses the real socket.
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
