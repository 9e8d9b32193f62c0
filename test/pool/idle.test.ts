import { idle, pooling } from "../support/suites/pooling.js"

for (const order of ["lifo", "fifo"] as const) pooling("pooled", order, idle)
