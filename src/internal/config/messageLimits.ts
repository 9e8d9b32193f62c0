/**
 * The check of the limits for messages of a server.
 */
import type { ProtocolLimits } from "../../ServerConfig.js"
import type { GivenOptions } from "./optionNames.js"
import { count } from "./optionParsers.js"

/** The smallest valid limit for the bytes of a login or of notices. */
const minStartupBytes = 16_384

/** Checks the limits for messages of a server, and fills in the defaults. */
export const protocolLimits = (options: GivenOptions): ProtocolLimits => ({
  maxRowBytes: count("maxRowBytes", options.maxRowBytes, 268_435_456, 1024),
  maxNoticeBytes: count("maxNoticeBytes", options.maxNoticeBytes, 67_108_864, minStartupBytes),
  maxStartupBytes: count("maxStartupBytes", options.maxStartupBytes, 1_048_576, minStartupBytes),
  maxScramIterations: count("maxScramIterations", options.maxScramIterations, 1_000_000, 4096)
})
