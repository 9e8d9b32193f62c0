import { pooling, upkeep } from "../support/suites/pooling.js"

for (const strategy of ["pooled", "single"] as const) pooling(strategy, "lifo", upkeep, { onSessions: true })
