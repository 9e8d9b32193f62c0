import * as Audit from "./audit.js"
import * as Cluster from "./cluster.js"
import * as Records from "./records.js"
import * as Servers from "./servers.js"
import * as Todos from "./todos.js"

Todos.start()
Audit.look()
Records.start()
Servers.start()
Cluster.start()
