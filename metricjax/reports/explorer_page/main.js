/* Where one is: the view, the image and the class, all of them in the address. */

const VIEWS = {
  map: mapView, queries: queryView, classes: classView, confusions: confusionView,
  similarities: similarityView,
};
const KEYS = { m: "map", q: "queries", c: "classes", f: "confusions", s: "similarities" };
const here = { view: "", image: -1, label: -1 };

function parsed() {
  const parameters = new URLSearchParams(location.hash.slice(1));
  const view = parameters.get("view");
  const image = parameters.has("image") ? imageOfNumber(Number(parameters.get("image"))) : -1;
  const label = parameters.has("class") ? Number(parameters.get("class")) : -1;
  return {
    view: view in VIEWS ? view : here.view || "map",
    image: image >= 0 ? image : here.image,
    label: Number.isInteger(label) && label < facts.classes.length ? label : -1,
  };
}

/** Goes to another view, image or class; a step that "back" takes back. */
function go(changes) {
  const { view, image, label } = { ...here, ...changes };
  const parts = [];
  if (image >= 0) parts.push(`image=${imageNumbers[image]}`);
  parts.push(`view=${view}`);
  if (label >= 0) parts.push(`class=${label}`);
  const address = `#${parts.join("&")}`;
  if (address !== location.hash) location.hash = address;
}

/* The history of a page from a file can be counted, but not looked into. */
let at = history.state && history.state.at || 0, furthest = at;
history.replaceState({ at }, "");
const canStep = (by) => by < 0 ? at > 0 : at < furthest;

function arrive() {
  if (history.state && Number.isInteger(history.state.at)) {
    at = history.state.at;
  } else {
    at += 1;
    furthest = at;
    history.replaceState({ at }, "");
  }
  show(parsed());
}

function show({ view, image, label }) {
  const moved = image !== here.image;
  Object.assign(here, { view, image, label });
  for (const name of Object.keys(VIEWS)) {
    const tab = document.getElementById(`tab-${name}`), chosen = name === view;
    tab.setAttribute("aria-selected", String(chosen));
    tab.tabIndex = chosen ? 0 : -1;
    document.getElementById(`view-${name}`).hidden = !chosen;
  }
  if (image >= 0) {
    const held = walkerBody.contains(document.activeElement);
    walkTo(image);
    if (held) walkerBody.querySelector(".tiles .tile")?.focus({ preventScroll: true });
    if (moved) mapView.chosen(image);
  }
  VIEWS[view].open(label);
}

document.addEventListener("click", (event) => {
  const image = event.target.closest("[data-image]"), named = event.target.closest("[data-class]");
  const step = event.target.closest("[data-step]");
  if (image) {
    openWalker(true);
    go({ image: Number(image.dataset.image) });
  } else if (named) {
    if (named.dataset.view) openWalker(false);
    go({ label: Number(named.dataset.class), view: named.dataset.view || here.view });
  } else if (step) {
    history.go(Number(step.dataset.step));
  }
});

const tabs = [...document.querySelectorAll("[role=tab]")];
for (const tab of tabs) {
  tab.addEventListener("click", () => go({ view: tab.id.slice(4), label: -1 }));
  tab.addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!by) return;
    event.preventDefault();
    event.stopPropagation();
    const next = tabs[(tabs.indexOf(tab) + by + tabs.length) % tabs.length];
    next.focus();
    next.click();
  });
}

const help = document.getElementById("help");
document.getElementById("help-button").addEventListener("click", () => help.showModal());

/* Keys for all of the page, wherever nothing is typed and no key means something else. */
document.addEventListener("keydown", (event) => {
  const typing = event.target.closest("input, select, dialog");
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
  if (event.key === "Escape" && !typing) return openWalker(false);
  if (typing) return;
  const key = event.key;
  if (/^[0-9]$/.test(key) && here.image >= 0) {
    const other = neighbor(here.image, key === "0" ? 9 : Number(key) - 1);
    if (other !== undefined && other !== NONE && (key === "0" ? 10 : Number(key)) <= NEIGHBORS) go({ image: other });
  } else if (key === "ArrowLeft" && canStep(-1)) history.back();
  else if (key === "ArrowRight" && canStep(1)) history.forward();
  else if (key === "n" || key === "p") {
    const next = here.image + (key === "n" ? 1 : -1);
    if (next >= 0 && next < total) go({ image: next });
  } else if (key in KEYS) go({ view: KEYS[key], label: -1 });
  else if (key === "?") help.showModal();
  else if (key === "/" && VIEWS[here.view].filter) {
    event.preventDefault();
    VIEWS[here.view].filter.focus();
  }
});

window.addEventListener("hashchange", arrive);
here.image = judged ? queries[0] : Math.max(valid.indexOf(1), 0);
show(parsed());
