// The review by keyboard: which picture is chosen, and which one the arrow keys lead to.

/** The picture that has the focus. */
export const chosen = () => (document.activeElement?.classList.contains("tile") ? document.activeElement : null);

/** Moves the choice by the arrow keys: sideways one picture, up and down one row. */
export function move(key, panel) {
  const tiles = [...panel.querySelectorAll(".tile")];
  if (!tiles.length) return;
  const now = chosen();
  if (!now) return choose(tiles[0]);
  const place = tiles.indexOf(now);
  if (key === "ArrowLeft" || key === "ArrowRight") return choose(tiles[place + (key === "ArrowRight" ? 1 : -1)]);
  const { left, top } = now.getBoundingClientRect();
  const down = key === "ArrowDown";
  const others = tiles.filter((tile) => (down ? tile.getBoundingClientRect().top > top + 4 : tile.getBoundingClientRect().top < top - 4));
  const distance = (tile) => {
    const place = tile.getBoundingClientRect();
    return Math.abs(place.top - top) * 10 + Math.abs(place.left - left);
  };
  choose(others.sort((first, second) => distance(first) - distance(second))[0]);
}

function choose(tile) {
  if (!tile) return;
  for (const other of tile.closest('[role="tabpanel"]').querySelectorAll('.tile[tabindex="0"]')) other.tabIndex = -1;
  tile.tabIndex = 0;
  tile.focus();
  tile.scrollIntoView({ block: "nearest" });
}

/** Goes to the next tab by the arrow keys. */
export function changeTab(event) {
  const tabs = [...document.querySelectorAll('[role="tab"]')];
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!step) return;
  const next = tabs[(tabs.indexOf(event.target) + step + tabs.length) % tabs.length];
  next.focus();
  next.click();
}
