/**
 * The faults of an episode. Each has random numbers of its own, so that a fault that is left out
 * does not change the others.
 */
import { loop } from "../loop/loop.js"
import type { Random } from "../loop/random.js"
import type { Link, Network } from "../network/network.js"
import type { Cluster } from "../postgres/cluster.js"
import type { PostgresServer } from "../postgres/server.js"
import type { Period } from "./periods.js"
import { type FaultKind, faultKinds } from "./settings.js"

/** Fault of the plan of an episode. */
export interface PlannedFault {
  readonly number: number
  readonly at: number
  readonly kind: FaultKind
  readonly random: Random
}

/** Parts of an episode that faults act on. */
export interface Scene {
  readonly network: Network
  readonly clusters: readonly [Cluster, ...ReadonlyArray<Cluster>]
  readonly trace: (line: string) => void
  /** Called when the process of the program has stood still. */
  readonly onStall: (millis: number) => void
}

/** The faults that change the primary. */
const roleChanges: ReadonlySet<FaultKind> = new Set(["failover", "switchover", "splitBrain"])

/** The most changes of the primary in one busy time. */
const maxRoleChanges = 2

/** Plans the faults of an episode, in its busy times. */
export const planFaults = (random: Random, busy: ReadonlyArray<Period>): ReadonlyArray<PlannedFault> => {
  const kinds = random.fork("kinds")
  // an episode has some kinds of faults only, so that each is also seen without the others
  const [first = "reset", ...others] = faultKinds.filter(() => kinds.chance(0.5))
  const chosen = [first, ...others] as const
  const all: Array<PlannedFault> = []
  for (const { from, to } of busy) {
    const pause = random.pick([2000, 8000, 20_000])
    let changes = 0
    for (let at = from + random.exponential(pause); at < to; at += random.exponential(pause)) {
      const kind = random.pick(chosen)
      // after a change of the primary the monitors ask often, and little else would be simulated
      if (roleChanges.has(kind) && ++changes > maxRoleChanges) continue
      all.push({ number: all.length, at, kind, random: random.fork(`fault ${all.length}`) })
    }
  }
  return all
}

/** Returns a duration: mostly short, sometimes long, and rarely longer than every timeout. */
const durationOf = (random: Random): number =>
  random.exponential(
    random.weighted([
      [1500, 78],
      [15_000, 20],
      [120_000, 2]
    ])
  )

/** Returns a connection whose session serves the program. */
const anyLink = ({ network }: Scene, random: Random): Link | undefined => {
  const open = [...network.links].filter((link) => link.isOpen && !link.isDead)
  return open[random.whole(0, Math.max(0, open.length - 1))]
}

/** Injects a fault. */
export const inject = (scene: Scene, { kind, number, random }: PlannedFault): void => {
  const cluster = random.pick(scene.clusters)
  const server = random.pick(cluster.servers)
  const millis = durationOf(random)
  const end = (after: number, act: () => void) => {
    loop.schedule(after, () => {
      scene.trace(`fault ${number} ${kind} ends`)
      act()
    })
  }
  scene.trace(`fault ${number} ${kind} ${server.name} ${millis.toFixed(0)}`)
  server.touch()
  switch (kind) {
    case "cut": {
      server.hindrances++
      server.cuts++
      scene.network.setCut(server.host, true)
      return end(millis, () => {
        server.hindrances--
        if (server.cuts > 0) server.cuts--
        // another cut of the same host may go on
        if (server.cuts === 0) scene.network.setCut(server.host, false)
        server.touch()
      })
    }
    case "slowNetwork": {
      const { host } = server
      const extra = random.exponential(300)
      host.latency += extra
      host.jitter += extra / 3
      server.hindrances++
      return end(millis, () => {
        server.hindrances--
        host.latency -= extra
        host.jitter -= extra / 3
        server.touch()
      })
    }
    case "halfOpen":
      return anyLink(scene, random)?.die(random.pick(["both", "toClient", "toServer"]))
    case "reset":
      return anyLink(scene, random)?.reset()
    case "terminate": {
      const sessions = [...server.sessions.values()]
      const all = random.chance(0.3) ? sessions : sessions.slice(0, 1)
      for (const session of all) session.terminate("57P01", "terminating connection due to administrator command")
      return
    }
    case "crash":
    case "restart":
    case "power":
      return goDown(scene, cluster, server, kind, random, millis)
    case "freeze":
      if (server.isRunning) server.freeze(millis)
      return
    case "slowServer": {
      const factor = random.exponential(200)
      server.slowness += factor
      server.hindrances++
      return end(millis, () => {
        server.hindrances--
        server.slowness -= factor
        server.touch()
      })
    }
    case "commit": {
      const probability = random.pick([0.1, 0.5, 1])
      const faults = random.fork("commits")
      server.commitFault = () =>
        faults.chance(probability) ? faults.pick(["lostBefore", "lostAfter", "deadAfter", "slow"]) : undefined
      return end(millis * 2, () => {
        server.commitFault = () => undefined
      })
    }
    case "failover":
    case "switchover":
    case "splitBrain":
      return changePrimary(cluster, kind, random, millis)
    case "lag": {
      const standby = cluster.standbys[random.whole(0, Math.max(0, cluster.standbys.length - 1))]
      if (standby !== undefined) cluster.pauseReplay(standby, millis * 3)
      return
    }
    case "clockStep":
      loop.wallOffset += random.between(-1, 1) * random.pick([100, 10_000, 3_600_000])
      return
    case "stall": {
      const stalled = random.exponential(random.chance(0.8) ? 200 : 2000)
      loop.stall(stalled)
      return scene.onStall(stalled)
    }
  }
}

/** Ends a server, and starts it again after a time. */
const goDown = (
  { network }: Scene,
  cluster: Cluster,
  server: PostgresServer,
  kind: "crash" | "restart" | "power",
  random: Random,
  millis: number
): void => {
  if (!server.isRunning || !server.host.isUp) return
  if (kind === "restart") server.stop()
  else {
    if (kind === "power") network.setPower(server.host, false)
    server.crash()
  }
  if (server === cluster.primary) cluster.onPrimaryDown()
  loop.schedule(millis, () => {
    if (kind === "power") network.setPower(server.host, true)
    cluster.start(server, random.between(10, 3000))
  })
}

/** Moves the role of the primary to a standby. */
const changePrimary = (
  cluster: Cluster,
  kind: "failover" | "switchover" | "splitBrain",
  random: Random,
  millis: number
): void => {
  const { primary, standbys } = cluster
  const running = standbys.filter((standby) => standby.isRunning && !standby.isFrozen)
  const successor = running[random.whole(0, Math.max(0, running.length - 1))]
  if (successor === undefined || !primary.isRunning || !primary.host.isUp) return
  if (kind === "switchover") {
    primary.stop()
    cluster.catchUpNow(successor)
    cluster.promote(successor)
    cluster.rejoin(primary)
    return
  }
  if (kind === "failover") {
    primary.crash()
    cluster.onPrimaryDown()
    loop.schedule(random.exponential(2000), () => {
      if (primary.isRunning || cluster.primary !== primary || !cluster.promote(successor)) {
        if (cluster.primary === primary) cluster.start(primary, random.between(10, 3000))
        return
      }
      loop.schedule(millis, () => cluster.rejoin(primary))
    })
    return
  }
  // the former primary goes on until it is found
  if (cluster.promote(successor)) loop.schedule(millis, () => cluster.rejoin(primary))
}
