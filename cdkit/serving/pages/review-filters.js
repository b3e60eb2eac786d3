// Which pictures, and which of those left out, the filters let through.

import { byId } from "./shared.js";

const FIELDS = ["state", "host", "reason", "low", "high", "words"];

export const filterFields = () => FIELDS.map((name) => byId(`filter-${name}`));

/** Whether a picture, or a row that was left out, is shown. */
export function matches(row, isRejected, leftOut = false) {
  const [state, host, reason, low, high, words] = filterFields().map((field) => field.value);
  const similarity = row.similarity ?? null;
  if (!leftOut && state && (state === "rejected") !== isRejected) return false;
  if (leftOut && reason && row.reason !== reason) return false;
  if (host && row.host !== host) return false;
  if (low !== "" && (similarity === null || similarity < Number(low))) return false;
  if (high !== "" && (similarity === null || similarity > Number(high))) return false;
  return !words || (row.caption ?? "").toLowerCase().includes(words.toLowerCase());
}
