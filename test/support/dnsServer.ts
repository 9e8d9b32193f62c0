/** A DNS server of a test's own, on a free UDP port. */
import * as Dgram from "node:dgram"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"

/** Record of a name. */
type DnsRecord =
  | { readonly type: "A" | "AAAA"; readonly address: string }
  | {
      readonly type: "SRV"
      readonly target: string
      readonly port: number
      readonly priority: number
      readonly weight: number
    }

const types = { A: 1, AAAA: 28, SRV: 33 } as const

const labels = (name: string): Buffer =>
  Buffer.concat([
    ...name
      .split(".")
      .filter((label) => label !== "")
      .map((label) => Buffer.concat([Buffer.from([label.length]), Buffer.from(label)])),
    Buffer.from([0])
  ])

const uint16 = (...numbers: ReadonlyArray<number>): Buffer => Buffer.from(numbers.flatMap((n) => [n >> 8, n & 0xff]))

/** Returns the bytes of an address; an IPv6 address is given in full, with eight groups. */
const addressBytes = (address: string): Buffer =>
  address.includes(":")
    ? uint16(...address.split(":").map((group) => Number.parseInt(group, 16)))
    : Buffer.from(address.split(".").map(Number))

const dataOf = (record: DnsRecord): Buffer =>
  record.type === "SRV"
    ? Buffer.concat([uint16(record.priority, record.weight, record.port), labels(record.target)])
    : addressBytes(record.address)

/** Reads the name of a question, which begins after the header. */
const nameOf = (query: Buffer): { readonly name: string; readonly end: number } => {
  const parts: Array<string> = []
  let at = 12
  for (let length = query.readUInt8(at); length > 0; length = query.readUInt8(at)) {
    parts.push(query.toString("latin1", at + 1, at + 1 + length))
    at += 1 + length
  }
  return { name: parts.join(".").toLowerCase(), end: at + 1 }
}

/** Server whose records a test changes. Without records of a name, it answers that there is none. */
export interface DnsServer {
  /** The address, as `Resolver.setServers` takes it. */
  readonly address: string
  readonly records: Map<string, ReadonlyArray<DnsRecord>>
  /** True if queries get no answer. */
  isSilent: boolean
}

/** Starts a server, which is closed when the scope ends. */
export const makeDnsServer: Effect.Effect<DnsServer, never, Scope.Scope> = Effect.gen(function* () {
  const socket = Dgram.createSocket("udp4")
  const server = { address: "", records: new Map<string, ReadonlyArray<DnsRecord>>(), isSilent: false }
  socket.on("message", (query, { address, port }) => {
    if (server.isSilent) return
    const { end, name } = nameOf(query)
    const type = query.readUInt16BE(end)
    const records = server.records.get(name)
    const found = (records ?? []).filter((record) => types[record.type] === type)
    const answers = found.map((record) => {
      const data = dataOf(record)
      // the name of the question, its type and class, and a time to live of 0
      return Buffer.concat([uint16(0xc00c, type, 1, 0, 0, data.length), data])
    })
    const flags = records === undefined ? 0x8183 : 0x8180
    const head = Buffer.concat([query.subarray(0, 2), uint16(flags, 1, answers.length, 0, 0)])
    socket.send(Buffer.concat([head, query.subarray(12, end + 4), ...answers]), port, address)
  })
  yield* Effect.acquireRelease(
    Effect.async<void>((resume) => {
      socket.bind(0, "127.0.0.1", () => resume(Effect.void))
    }),
    () =>
      Effect.async<void>((resume) => {
        socket.close(() => resume(Effect.void))
      })
  )
  server.address = `127.0.0.1:${socket.address().port}`
  return server
})
