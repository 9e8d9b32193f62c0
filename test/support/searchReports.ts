/** Callbacks of a search for the writer that do nothing; a test replaces those that it examines. */
import type { SearchReports } from "../../src/internal/topology/writerSearch.js"

export const noReports: SearchReports = {
  awaitsHosts: () => false,
  hasHeard: () => false,
  hasRead: () => false,
  onChange: () => {},
  onFailed: () => {},
  onHosts: () => {},
  onLost: () => {},
  onMoved: () => {},
  onSearch: () => {},
  onSilent: () => {}
}
