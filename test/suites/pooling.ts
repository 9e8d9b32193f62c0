/**
 * What a pool promises, whatever way it is opened: one test for each sentence on pools in what SQLAlchemy and HikariCP promise. What makes
 * no sense in a way is not among the tests for it.
 */
import { closing } from "./pooling/closing.js"
import { events } from "./pooling/events.js"
import { growth } from "./pooling/growth.js"
import { invalidation } from "./pooling/invalidation.js"
import { leaks } from "./pooling/leaks.js"
import { life } from "./pooling/life.js"
import { limits } from "./pooling/limits.js"
import { sessions } from "./pooling/sessions.js"
import { strategies } from "./pooling/strategies.js"
import { use } from "./pooling/use.js"
import { validation } from "./pooling/validation.js"
import { waiting } from "./pooling/waiting.js"
import type { Way } from "./pooling/way.js"

export const pooling = (way: Way): void => {
  limits(way)
  waiting(way)
  life(way)
  validation(way)
  if (way.strategy === "pooled") growth(way)
  // the rest looks at sessions
  if (!way.route.hasSessions) return
  leaks(way)
  closing(way)
  sessions(way)
  invalidation(way)
  events(way)
  use(way)
  if (way.strategy === "pooled") strategies(way)
}
