/**
 * The user and password of a server, which are fixed or requested for each physical connection, and
 * their generations.
 *
 * A generation begins when a provider returns credentials that differ from the current ones.
 * Answers may arrive out of order: an answer that differs from the answer to a later request
 * belongs to the previous generation.
 */
import type { Secret } from "../protocol/secret.js"
import type { ConnectFailure } from "./connectFailure.js"
import type { Dial } from "./destination.js"

/** Credentials as a provider returns them. */
export interface ProvidedCredentials {
  readonly username: string
  readonly password: Secret | undefined
  /**
   * A value that identifies the credentials. If two credentials both have one, it is compared
   * instead of user and password.
   */
  readonly version?: string | number | undefined
  /** The passphrase of the TLS key in the settings. */
  readonly tlsPassphrase?: Secret | undefined
}

/** Credentials and their generation. */
export interface Login extends ProvidedCredentials {
  readonly generation: number
}

/** Callback that is called once, with credentials or a failure, unless the request is cancelled. */
type OnAnswer<Answer> = (answer: Answer | undefined, failure: ConnectFailure | undefined) => void

/** Callback for credentials and their generation. */
export type OnLogin = OnAnswer<Login>

/** Provider of credentials, and of streams in place of sockets. It may run code of the program. */
export interface CredentialProvider {
  /** True if each request may return other credentials. */
  readonly isDynamic: boolean
  /** Requests credentials; the returned function cancels. */
  readonly request: (callback: OnAnswer<ProvidedCredentials>) => () => void
  /** Opens a stream to the server in place of a socket. */
  readonly dial?: Dial | undefined
}

const isSame = (a: ProvidedCredentials, b: ProvidedCredentials): boolean =>
  a.version !== undefined && b.version !== undefined
    ? a.version === b.version
    : a.username === b.username && a.password?.reveal() === b.password?.reveal()

/** Source of the credentials of one server. */
export class CredentialSource {
  /** The current generation. */
  generation = 0
  private readonly followers = new Set<(generation: number) => void>()
  private current: ProvidedCredentials | undefined
  /** The number of the last request. */
  private lastRequest = 0
  /** The number of the last request that was answered. */
  private lastAnswered = 0

  constructor(private readonly provider: CredentialProvider) {}

  /** Checks if each request may return other credentials. */
  get isDynamic(): boolean {
    return this.provider.isDynamic
  }

  /** Returns the function that opens a stream in place of a socket, if the program has set it. */
  get dial(): Dial | undefined {
    return this.provider.dial
  }

  /** Calls `follower` with each new generation until the returned function is called. */
  follow(follower: (generation: number) => void): () => void {
    this.followers.add(follower)
    return () => {
      this.followers.delete(follower)
    }
  }

  /** Requests credentials; the returned function cancels. */
  request(callback: OnLogin): () => void {
    const request = ++this.lastRequest
    return this.provider.request((provided, failure) =>
      callback(provided === undefined ? undefined : this.withGeneration(request, provided), failure)
    )
  }

  private withGeneration(request: number, provided: ProvidedCredentials): Login {
    const isOther = this.current !== undefined && !isSame(this.current, provided)
    if (isOther && request < this.lastAnswered) return { ...provided, generation: this.generation - 1 }
    this.lastAnswered = Math.max(this.lastAnswered, request)
    this.current = provided
    if (isOther) {
      this.generation++
      for (const follower of this.followers) follower(this.generation)
    }
    return { ...provided, generation: this.generation }
  }
}
