import { callers, pooling } from "../support/suites/pooling.js"

pooling("pooled", "lifo", callers)
