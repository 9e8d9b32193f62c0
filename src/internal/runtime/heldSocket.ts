/**
 * The socket of a request, as its program sees it while the response is held. An error handler such as Express's closes the socket when
 * the answer seems to be out, which would close it before the answer is.
 */

/** A request of HTTP/1 or HTTP/2, which may have no socket: some are made up for tests. */
export interface WithSocket {
  readonly socket?: object | null | undefined
}

/** Shows a socket whose `destroy` is passed to `hold`. Only the request shows it: Node's own calls reach the real one. */
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
